// A few pictures of one feature at one symmetric colour scale: {title, pictures: [{name, norm}], words}, arrays by name.
export const render = surface((root, send) => {
  const SIDE = 168;
  const title = el("h2"), box = el("div", { style: "display:grid;grid-template-columns:1fr 1fr;gap:10px 14px" });
  const scales = el("div", { style: "margin-top:10px;display:grid;gap:4px" }), words = el("div", { style: "margin-top:8px" });
  const card = el("div", { class: "card" }, title, box, scales, words);
  let shown = "", panes = [], bad = false;
  function build(frame) {
    panes = frame.pictures.map(({ name }) => ({ canvas: el("canvas", { role: "img" }), norm: el("div", { class: "num", style: "font-size:12px" }), name }));
    box.replaceChildren(...panes.map((p) => el("div", {}, el("div", { class: "soft", style: "font-size:12px" }, p.name), p.canvas, p.norm)));
    root.replaceChildren(card);
  }
  function draw(pane, { norm, limit }, { data, shape }) {
    const [h, w] = shape, height = Math.max(8, Math.round(SIDE * Math.min(1, h / w))), c = sized(pane.canvas, SIDE, height);
    c.imageSmoothingEnabled = false;
    const image = picture(data, w, h, -limit, limit, "diverging");
    c.drawImage(image, 0, 0, SIDE, height);
    bad ||= image.bad;
    pane.norm.textContent = `norm ${fmt(norm)}`;
    pane.canvas.setAttribute("aria-label", `${pane.name}, norm ${fmt(norm)}`);
  }
  return (frame) => {
    if (frame.kind === "theme") return;
    if (frame.problem) { shown = ""; saying(root, frame.problem, frame.action, send); return; }
    const names = frame.pictures.map((p) => p.name).join();
    if (names !== shown) { shown = names; build(frame); }
    title.textContent = frame.title;
    bad = false;
    frame.pictures.forEach((p, i) => draw(panes[i], p, frame.arrays[p.name]));
    scales.replaceChildren(...frame.scales.map(([name, limit], i) => el("div", { class: "row" }, el("span", { class: "soft", style: "font-size:12px;min-width:64px" }, name), scaleBar(-limit, limit, "diverging", bad && i === frame.scales.length - 1, true))));
    words.replaceChildren(...frame.words.map(([text, kind]) => el("div", { class: kind }, text)));
  };
});
