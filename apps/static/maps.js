// Matrices side by side with one cursor; hover says row, column and value in each, a click chooses the row.
export const render = surface((root, send) => {
  let last = null, spot = null;
  const read = el("div", { class: "num", role: "status", style: "min-height:20px;margin-top:6px" });
  const box = el("div", { style: "display:flex;gap:18px 28px;flex-wrap:wrap;justify-content:space-evenly" });
  const card = el("div", { class: "card", style: "margin-bottom:12px" }, box, read);
  let panes = [];
  function build() {
    panes = last.maps.map((m) => ({ map: m, canvas: el("canvas", { role: "img", "aria-label": m.title, style: "cursor:crosshair" }), under: el("div") }));
    box.replaceChildren(...panes.map((p) => el("div", {}, el("h2", {}, p.map.title), p.canvas, p.under)));
    for (const p of panes) {
      p.canvas.onpointermove = (event) => { spot = place(p, event); draw(); };
      p.canvas.onpointerleave = () => { spot = null; draw(); };
      p.canvas.onclick = (event) => { const at = place(p, event); if (at) send({ do: "feature", feature: last.order ? last.order[at[0]] : at[0] }); };
    }
  }
  // As large as the window lets all of them be seen side by side, with what stands under them.
  const square = () => {
    const count = panes.length, wide = (card.clientWidth || 860) - 30, each = (wide - 28 * (count - 1)) / count;
    const high = innerHeight - (box.getBoundingClientRect().top + scrollY) - 175;
    return Math.floor(Math.max(140, Math.min(last.side || 760, each < 250 ? wide : each, last.side || Math.max(380, high))));
  };
  function place(p, event) {
    const [h, w] = last.arrays[p.map.name].shape, side = square();
    const at = [Math.floor(event.offsetY / (side * Math.min(1, h / w)) * h), Math.floor(event.offsetX / (side * Math.min(1, w / h)) * w)];
    return at[0] >= 0 && at[1] >= 0 && at[0] < h && at[1] < w ? at : null;
  }
  const label = (i) => last.order ? last.order[i] : i;
  function draw() {
    for (const p of panes) {
      const [h, w] = last.arrays[p.map.name].shape, side = square();
      const width = side * Math.min(1, w / h), height = side * Math.min(1, h / w), c = sized(p.canvas, width, height);
      c.imageSmoothingEnabled = false; c.drawImage(p.image, 0, 0, width, height);
      const chosen = last.order ? last.order.indexOf(last.feature) : last.feature;
      p.canvas.parentNode.style.width = `${side}px`;
      // On a white edge, so that it is seen on any colour.
      for (const [colour, wide] of [["#fff", 3.5], ["#1f5fd0", 1.5]]) {
        c.strokeStyle = colour; c.lineWidth = wide;
        if (chosen >= 0 && chosen < h) c.strokeRect(1, chosen * height / h, width - 2, height / h);
      }
      if (spot && spot[0] < h && spot[1] < w) {
        c.strokeStyle = "#000"; c.lineWidth = 1; c.strokeRect(spot[1] * width / w, spot[0] * height / h, Math.max(2, width / w), Math.max(2, height / h));
        c.globalAlpha = .35; c.beginPath(); c.moveTo(0, (spot[0] + .5) * height / h); c.lineTo(width, (spot[0] + .5) * height / h);
        c.moveTo((spot[1] + .5) * width / w, 0); c.lineTo((spot[1] + .5) * width / w, height); c.stroke(); c.globalAlpha = 1;
      }
    }
    if (spot && last.levels) {
      if (!last.asked) { last.asked = true; send({ do: "exact" }); }
      read.textContent = "reading the numbers …"; return;
    }
    read.textContent = spot ? `row ${label(spot[0])}, column ${label(spot[1])}:  ` + panes.map((p) => {
      const { data, shape } = last.arrays[p.map.name];
      return spot[0] < shape[0] && spot[1] < shape[1] ? `${p.map.short} ${fmt(data[spot[0] * shape[1] + spot[1]])}` : "";
    }).join("   ") : "Point at a cell to read it; a click chooses its row.";
    read.className = spot ? "num" : "soft";
  }
  new ResizeObserver(() => last && draw()).observe(card);
  const resized = () => (root.isConnected ? last && draw() : removeEventListener("resize", resized));
  addEventListener("resize", resized);
  return (frame) => {
    if (frame.kind === "theme") { if (last) draw(); return; }
    if (frame.problem) { last = null; saying(root, frame.problem, frame.action, send); return; }
    const same = last && JSON.stringify(last.maps.map((m) => m.name)) === JSON.stringify(frame.maps.map((m) => m.name));
    last = frame;
    if (card.parentNode !== root) root.replaceChildren(card);
    if (!same) build();
    last.maps.forEach((m, i) => {
      const p = panes[i], { data, shape: [h, w] } = last.arrays[m.name];
      p.map = m; p.image = last.levels ? levels(data, w, h, m.colours) : picture(data, w, h, m.low, m.high, m.colours);
      p.canvas.parentNode.querySelector("h2").textContent = m.title;
      p.under.replaceChildren(el("div", { style: "margin:6px 0 2px" }, scaleBar(m.low, m.high, m.colours, p.image.bad)), el("div", { class: "num", style: "font-size:12px" }, m.figures || ""));
    });
    draw();
  };
});
