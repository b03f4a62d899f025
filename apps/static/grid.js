// The batch: pictures on one canvas; a click enlarges one and says its own loss and who won it.
export const render = surface((root, send) => {
  const sort = el("select", { "aria-label": "sort by", onchange: () => { s.sort = sort.value; arrange(); } });
  const size = el("select", { "aria-label": "picture size", onchange: () => { s.cell = Number(size.value); paint(); } },
    [28, 42, 56, 84].map((n) => el("option", { value: n, selected: n === 56 }, `${n} px`)));
  const note = el("span", { class: "soft" });
  const canvas = el("canvas", { tabIndex: 0, "aria-label": "the batch's images; click one to enlarge it" });
  const left = el("div", { class: "card", style: "min-width:0" }, el("div", { class: "row", style: "margin-bottom:10px" },
    el("label", {}, "sort by", sort), el("label", {}, "size", size), el("span", { class: "grow" }), note), canvas);
  const right = el("div", { class: "card", style: "min-height:200px" });
  const both = el("div", { style: "display:grid;grid-template-columns:minmax(0,1fr) 300px;gap:12px;align-items:start" }, left, right);
  const s = { cell: 56, sort: "position", order: [], chosen: 0, images: null, tiles: [], labels: null, values: {}, winners: [] };

  function arrange() {
    const values = s.values[s.sort];
    s.order = s.tiles.map((_, i) => i);
    if (values) s.order.sort((a, b) => (Number.isNaN(values[b]) ? 1 : 0) - (Number.isNaN(values[a]) ? 1 : 0) || values[b] - values[a] || a - b);
    paint(); detail();
  }
  function slice() {
    const { data, shape } = s.images, [count, h, w] = shape, depth = shape[3] || 1, area = h * w;
    const sheet = document.createElement("canvas");
    sheet.width = w * count; sheet.height = h;
    const image = new ImageData(w * count, h);
    for (let n = 0; n < count; n++) for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      const from = (n * area + y * w + x) * depth, to = 4 * (y * w * count + n * w + x);
      image.data[to] = data[from]; image.data[to + 1] = data[from + (depth > 1 ? 1 : 0)]; image.data[to + 2] = data[from + (depth > 1 ? 2 : 0)];
      image.data[to + 3] = 255;
    }
    sheet.getContext("2d").putImageData(image, 0, 0);
    s.sheet = sheet; s.tiles = Array.from({ length: count }, (_, i) => i);
  }
  const columns = () => Math.max(1, Math.floor(((left.clientWidth || 700) - 30 + 4) / (s.cell + 4)));
  function paint() {
    if (!s.images || !s.sheet) return;
    const [, h, w] = s.images.shape, n = columns(), band = s.labels ? 14 : 0;
    const c = sized(canvas, n * (s.cell + 4) - 4, Math.ceil(s.order.length / n) * (s.cell + 4 + band));
    c.imageSmoothingEnabled = false; c.font = "11px ui-monospace, monospace"; c.textBaseline = "top";
    const soft = ink("soft"), accent = ink("accent");
    s.order.forEach((i, place) => {
      const x = (place % n) * (s.cell + 4), y = Math.floor(place / n) * (s.cell + 4 + band);
      c.drawImage(s.sheet, i * w, 0, w, h, x, y, s.cell, s.cell);
      if (s.labels) { c.fillStyle = soft; c.fillText(String(s.labels[i]).slice(0, 9), x + 1, y + s.cell + 2); }
      if (i === s.chosen) { c.strokeStyle = accent; c.lineWidth = 2.5; c.strokeRect(x + 1, y + 1, s.cell - 2, s.cell - 2); }
    });
  }
  canvas.addEventListener("click", (event) => {
    const n = columns(), band = s.labels ? 14 : 0;
    const place = Math.floor(event.offsetY / (s.cell + 4 + band)) * n + Math.floor(event.offsetX / (s.cell + 4));
    if (s.order[place] === undefined) return;
    s.chosen = s.order[place]; paint(); detail(); send({ do: "sample", sample: s.chosen });
  });
  function detail() {
    if (!s.sheet) { right.replaceChildren(); return; }
    const [, h, w] = s.images.shape, i = Math.min(s.chosen, s.tiles.length - 1);
    const large = el("canvas", { "aria-label": `image ${i}` }), c = sized(large, 272, Math.round(272 * h / w));
    c.imageSmoothingEnabled = false; c.drawImage(s.sheet, i * w, 0, w, h, 0, 0, 272, Math.round(272 * h / w));
    const rows = [["position in batch", i]];
    if (s.labels) rows.push(["label", s.labels[i]]);
    for (const [name, values] of Object.entries(s.values)) rows.push([name.replaceAll("_", " "), values[i]]);
    right.replaceChildren(large, el("dl", { class: "num", style: "margin-top:10px" }, rows.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, fmt(v))])));
    if (s.winners.length) right.append(el("h2", { style: "margin-top:10px" }, "Features that score highest on it"),
      el("div", { class: "row" }, s.winners.map(([f, score]) => el("button", { title: "choose this feature", onclick: () => send({ do: "feature", feature: f }) }, `${f} · ${fmt(score)}`))));
  }
  new ResizeObserver(() => paint()).observe(left);
  return (frame) => {
    if (frame.kind === "theme") { paint(); return; }
    if (frame.kind === "winners") { s.winners = frame.winners; detail(); return; }
    if (frame.problem) { s.images = s.sheet = null; saying(root, frame.problem); return; }
    if (frame.text) {
      s.images = s.sheet = null;
      root.replaceChildren(el("div", { class: "card" }, el("h2", {}, `Batch of ${frame.size}: no images`), el("pre", {}, frame.text)));
      return;
    }
    s.images = frame.arrays.images; s.labels = frame.labels; s.winners = frame.winners || []; s.chosen = Math.min(s.chosen, frame.size - 1);
    s.values = Object.fromEntries(Object.entries(frame.arrays).filter(([name]) => name !== "images").map(([name, a]) => [name, a.data]));
    const names = ["position", ...Object.keys(s.values)];
    if (sort.children.length !== names.length) sort.replaceChildren(...names.map((n) => el("option", { value: n }, n === "position" ? "position" : n.replaceAll("_", " "))));
    if (!names.includes(s.sort)) s.sort = "position";
    sort.value = s.sort;
    const [count, h, w, depth] = s.images.shape;
    note.textContent = `${count} images of ${h}×${w}${depth ? "×" + depth : ""}${frame.note ? ` · ${frame.note}` : ""}`;
    if (both.parentNode !== root) root.replaceChildren(both);
    slice(); arrange();
  };
});
