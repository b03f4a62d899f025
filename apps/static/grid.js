// The batch: pictures on one canvas; a click enlarges one and says its own loss and who won it.
export const render = surface((root, send) => {
  const sort = el("select", { "aria-label": "sort by", onchange: () => { s.sort = sort.value; arrange(); send({ do: "set", name: "sort", value: sort.value }); } });
  const size = el("select", { "aria-label": "picture size", onchange: () => { s.size = size.value; paint(); send({ do: "set", name: "size", value: size.value }); } });
  const note = el("span", { class: "soft" });
  const canvas = el("canvas", { tabIndex: 0, "aria-label": "the batch's images; click one to enlarge it, or go to the next by [ and ], up and down" });
  const left = el("div", { class: "card", style: "min-width:0" }, el("div", { class: "row", style: "margin-bottom:10px" },
    el("label", {}, "sort by", sort), el("label", {}, "size", size), el("span", { class: "grow" }), note), canvas);
  const right = el("div", { class: "card", style: "min-height:200px" });
  const both = el("div", { style: "display:grid;grid-template-columns:minmax(0,1fr) 300px;gap:12px;align-items:start" }, left, right);
  const s = { cell: 56, size: "fit", sort: "position", order: [], chosen: 0, images: null, tiles: [], labels: null, values: {}, winners: [] };

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
  // `fit`: as large as lets all of them be seen without scrolling, and the rows fill the card.
  function fitted(count, band) {
    const wide = (left.clientWidth || 700) - 30, high = Math.max(260, innerHeight - (canvas.getBoundingClientRect().top + scrollY) - 42);
    for (let n = Math.max(1, Math.ceil(wide / 124)); ; n++) {
      const cell = Math.floor((wide + 4) / n - 4);
      if (cell <= 40 || Math.ceil(count / n) * (cell + 4 + band) <= high) return Math.max(28, Math.min(120, cell));
    }
  }
  function paint() {
    if (!s.images || !s.sheet) return;
    const [, h, w] = s.images.shape, band = s.labels ? 14 : 0;
    s.cell = Number(s.size) || fitted(s.order.length, band);
    const n = columns(), c = sized(canvas, n * (s.cell + 4) - 4, Math.ceil(s.order.length / n) * (s.cell + 4 + band));
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
    choose(s.order[place]);
  });
  function choose(i) { s.chosen = i; paint(); detail(); send({ do: "sample", sample: i }); }
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowUp: -columns(), ArrowDown: columns(), "[": -1, "]": 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    const to = s.order[s.order.indexOf(s.chosen) + way];
    if (to !== undefined) choose(to);
  });
  // A batch without pictures: a table for each array, coloured by size, or by number where they are whole numbers.
  const CELL = { number: (v, most) => `background:color-mix(in srgb, ${v < 0 ? "#2f86d6" : "#d55e00"} ${Math.round(38 * Math.min(1, Math.abs(v) / (most || 1)))}%, transparent)`,
    whole: (v) => `background:hsl(${(v * 137.5) % 360} 70% 50% / .16)` };
  const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  function sheet(one, sample) {
    const pick = one.samples ? el("label", {}, "sample", el("input", { type: "number", class: "num", min: 0, max: one.samples - 1, value: Math.min(sample, one.samples - 1), style: "width:76px",
      onchange: (event) => send({ do: "sample", sample: Number(event.target.value) || 0 }) }), `of ${one.samples}`) : null;
    const head = el("div", { class: "row", style: "margin-bottom:8px" }, el("h2", { style: "margin:0" }, /^\d/.test(one.name) ? `batch[${one.name.replaceAll(".", "][")}]` : one.name), el("span", { class: "soft num" }, one.kind), el("span", { class: "grow" }), el("span", { class: "soft" }, one.note), pick);
    const card = el("div", { class: "card", style: "min-width:0" }, head);
    if (!one.rows.length) { card.append(el("pre", {}, one.text)); return card; }
    const numbers = one.rows.flat().filter((v) => typeof v === "number"), whole = numbers.every(Number.isInteger), most = Math.max(...numbers.map(Math.abs), 0);
    const cell = (v) => typeof v === "number" ? `<td style="${(whole ? CELL.whole : CELL.number)(v, most)}">${whole ? v : fmt(v)}</td>` : `<td class="${/^(NaN|-?Infinity)$/.test(v) ? "unknown" : "text"}">${escaped(v)}</td>`;
    const named = one.rows[0].length > 1, rows = one.rows.length > 1 || !named;
    const top = named ? `<thead><tr>${rows ? "<th></th>" : ""}${one.rows[0].map((_, i) => `<th scope="col">${i}</th>`).join("")}</tr></thead>` : "";
    const body = one.rows.map((row, i) => `<tr>${rows ? `<th scope="row">${i}</th>` : ""}${row.map(cell).join("")}</tr>`).join("");
    const box = el("div", { class: "sheet", tabIndex: 0, role: "region", "aria-label": one.name });
    box.innerHTML = `<table>${top}<tbody>${body}</tbody></table>`;
    card.append(box);
    return card;
  }
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
      el("div", { class: "row" }, s.winners.map(([f, score]) => el("button", { class: "said", title: "choose this feature", onclick: () => send({ do: "feature", feature: f }) }, `${f} · ${fmt(score)}`))));
  }
  new ResizeObserver(() => paint()).observe(left);
  const resized = () => (root.isConnected ? paint() : removeEventListener("resize", resized));
  addEventListener("resize", resized);
  return (frame) => {
    if (frame.kind === "theme") { paint(); return; }
    if (frame.kind === "winners") { s.winners = frame.winners; detail(); return; }
    if (frame.problem) { s.images = s.sheet = null; saying(root, frame.problem, frame.action, send); return; }
    if (frame.sheets) {
      s.images = s.sheet = null;
      root.replaceChildren(el("div", { class: "sheets" }, frame.sheets.map((one) => sheet(one, frame.sample))));
      return;
    }
    s.images = frame.arrays.images; s.labels = frame.labels; s.winners = frame.winners || []; s.chosen = Math.min(s.chosen, frame.size - 1);
    s.values = Object.fromEntries(Object.entries(frame.arrays).filter(([name]) => name !== "images").map(([name, a]) => [name, a.data]));
    const names = ["position", ...Object.keys(s.values)];
    if (sort.children.length !== names.length) sort.replaceChildren(...names.map((n) => el("option", { value: n }, n === "position" ? "position" : n.replaceAll("_", " "))));
    s.sort = names.includes(frame.sort) ? frame.sort : "position"; sort.value = s.sort;
    if (!size.children.length) size.replaceChildren(...frame.sizes.map((n) => el("option", { value: n }, n === "fit" ? "fit" : `${n} px`)));
    s.size = frame.sizes.includes(frame.shown_size) ? frame.shown_size : "fit"; size.value = s.size;
    const [count, h, w, depth] = s.images.shape;
    note.textContent = `${count} images of ${h}×${w}${depth ? "×" + depth : ""}${frame.note ? ` · ${frame.note}` : ""}`;
    if (both.parentNode !== root) root.replaceChildren(both);
    slice(); arrange();
  };
});
