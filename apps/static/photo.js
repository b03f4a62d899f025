// What is on show as one picture: charts as vectors, canvases as images, words as words. A PNG is the same, painted.
const SKIPPED = new Set(["BUTTON", "SELECT", "INPUT", "TEXTAREA", "LABEL", "SCRIPT", "STYLE", "DIALOG"]);

function escaped(text) { return text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`); }

function charts() {
  const found = new Map();
  const look = (view) => { if (view.model.type === "Figure") found.set(view.el, view); for (const child of view.child_views || []) look(child); };
  for (const root of Bokeh.index.roots) look(root);
  return found;
}

// What has no box of its own may still have visible parts.
function seen(node) { return node.checkVisibility() || getComputedStyle(node).display === "contents"; }

// Buttons say what to do next and stay out, but for those that are a heading, or say what was found.
function skipped(node) { return SKIPPED.has(node.tagName) && !(node.tagName === "BUTTON" && (node.role === "columnheader" || node.closest("th, .fold, .said"))); }

// The SVG of all that is visible but `left`, an element that stays out.
function photo(left) {
  let clip = null;
  const plots = charts(), parts = [], box = { x0: Infinity, y0: Infinity, x1: 0, y1: 0 };
  const keep = (r, make) => {
    const x = r.x + scrollX, y = r.y + scrollY;
    box.x0 = Math.min(box.x0, x); box.y0 = Math.min(box.y0, y); box.x1 = Math.max(box.x1, x + r.width); box.y1 = Math.max(box.y1, y + r.height);
    parts.push(make(`x="${x}" y="${y}" width="${r.width}" height="${r.height}"`, x, y));
  };
  // Words line by line, as the browser broke them.
  const word = (node) => {
    const range = document.createRange(), style = getComputedStyle(node.parentElement), lines = [];
    for (const { 0: part, index } of node.textContent.matchAll(/\S+\s*/g)) {
      range.setStart(node, index); range.setEnd(node, index + part.trimEnd().length);
      const r = range.getBoundingClientRect(), last = lines.at(-1);
      if (last && Math.abs(last.r.top - r.top) < 2) { last.text += part; last.r = new DOMRect(last.r.x, last.r.y, r.right - last.r.x, r.height); } else lines.push({ text: part, r });
    }
    const look = `fill="${style.color}" font-size="${style.fontSize}" font-weight="${style.fontWeight}" font-family="${escaped(style.fontFamily)}" xml:space="preserve"`;
    for (const { text, r } of lines) {
      const scrolledAway = clip && (r.bottom > clip.bottom + 1 || r.top < clip.top - 1);
      if (r.width && !scrolledAway) keep(r, (_, x, y) => `<text x="${x}" y="${y + r.height * 0.78}" ${look}>${escaped(text)}</text>`);
    }
  };
  // A coloured ground, and the frame of what is framed all around: bars, cells, chips, cards.
  const ground = (node, r) => {
    const style = getComputedStyle(node), fill = style.backgroundColor, clear = /^(transparent|rgba\(.*, 0\))$/.test(fill);
    const framed = parseFloat(style.borderTopWidth) && parseFloat(style.borderBottomWidth) && parseFloat(style.borderLeftWidth) && style.borderTopStyle === "solid";
    if (clear && !framed) return;
    // A table that is scrolled sideways is drawn whole: so is the frame around it.
    const beyond = framed ? Math.max(0, ...[...node.querySelectorAll(".wide")].map((wide) => wide.scrollWidth - wide.clientWidth)) : 0;
    for (const part of style.display === "inline" ? node.getClientRects() : [new DOMRect(r.x, r.y, r.width + beyond, r.height)]) {
      if (!part.width || !part.height || (clip && (part.bottom > clip.bottom + 1 || part.top < clip.top - 1))) continue;
      const around = Math.min(parseFloat(style.borderTopLeftRadius) || 0, part.height / 2, part.width / 2);
      keep(part, (place) => `<rect ${place} rx="${around}" fill="${clear ? "none" : fill}"${framed ? ` stroke="${style.borderTopColor}"` : ""}/>`);
    }
  };
  // What was typed, as it stands in its box.
  const typed = (node, r) => {
    const style = getComputedStyle(node), high = parseFloat(style.lineHeight) || 1.3 * parseFloat(style.fontSize);
    const look = `fill="${style.color}" font-size="${style.fontSize}" font-family="${escaped(style.fontFamily)}" xml:space="preserve"`;
    node.value.split("\n").slice(0, Math.floor(r.height / high)).forEach((text, i) => keep(r, (_, x, y) => `<text x="${x + 10}" y="${y + 6 + (i + 0.78) * high}" ${look}>${escaped(text)}</text>`));
  };
  const scale = (node, colours) => {
    const stops = colours.map((c, i) => `<stop offset="${i / (colours.length - 1)}" stop-color="${c}"/>`).join("");
    keep(node.getBoundingClientRect(), (place) => `<linearGradient id="g${parts.length}">${stops}</linearGradient><rect ${place} fill="url(#g${parts.length})"/>`);
  };
  const walk = (node) => {
    if (node === left) return;
    if (node.nodeType === Node.TEXT_NODE) { word(node); return; }
    if (node.nodeType !== Node.ELEMENT_NODE || !seen(node)) return;
    const r = node.getBoundingClientRect();
    if (node.tagName === "TEXTAREA") { ground(node, r); typed(node, r); return; }
    if (skipped(node)) return;
    if (node !== document.body) ground(node, r);
    const outer = clip;
    if (node !== document.body && node.scrollHeight > node.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(node).overflowY)) clip = r;
    if (plots.has(node)) { keep(r, (_, x, y) => `<g transform="translate(${x} ${y})">${plots.get(node).export("svg").ctx.get_serialized_svg(true)}</g>`); return; }
    if (node.tagName === "CANVAS") { if (r.width) keep(r, (place) => `<image ${place} href="${node.toDataURL()}"/>`); return; }
    const gradient = node.style.background.includes("linear-gradient") && node.style.background.match(/rgb\([^)]*\)/g);
    if (gradient) scale(node, gradient);
    for (const child of (node.shadowRoot || node).childNodes) walk(child);
    if (node.shadowRoot) for (const child of node.childNodes) walk(child);
    clip = outer;
  };
  walk(document.body);
  if (!parts.length) return null;
  const edge = 12, width = Math.ceil(box.x1 - box.x0 + 2 * edge), height = Math.ceil(box.y1 - box.y0 + 2 * edge);
  const view = `${box.x0 - edge} ${box.y0 - edge} ${width} ${height}`;
  const back = `<rect x="${box.x0 - edge}" y="${box.y0 - edge}" width="${width}" height="${height}" fill="${ink("card")}"/>`;
  return { width, height, text: `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="${width}" height="${height}" viewBox="${view}">${back}${parts.join("")}</svg>` };
}

function painted({ text, width, height }) {
  return new Promise((done, failed) => {
    const image = new Image(), canvas = el("canvas", { width: 2 * width, height: 2 * height });
    image.onload = () => { canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height); canvas.toBlob(done, "image/png"); };
    image.onerror = failed;
    image.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  });
}

async function savePhoto(left, form, name) {
  const found = photo(left);
  if (!found) return;
  const blob = form === "png" ? await painted(found) : new Blob([found.text], { type: "image/svg+xml" });
  const link = el("a", { href: URL.createObjectURL(blob), download: `${name}.${form}` });
  document.body.append(link); link.click(); link.remove();
}
