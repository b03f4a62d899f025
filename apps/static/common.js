// What every surface shares: reading a frame (apps/frame.py writes it), elements, colours, numbers.
const TYPES = { uint8: Uint8Array, float32: Float32Array, int32: Int32Array };

function unpack(buffer) {
  const bytes = buffer instanceof ArrayBuffer ? buffer : buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
  const length = new DataView(bytes).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const arrays = {};
  for (const [name, facts] of Object.entries(header.arrays)) {
    const count = facts.shape.reduce((a, b) => a * b, 1);
    arrays[name] = { data: new TYPES[facts.dtype](bytes, 4 + length + facts.offset, count), shape: facts.shape };
  }
  return { ...header, arrays };
}

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key === "style") node.style.cssText = value;
    else if (key in node && key !== "list" && !key.startsWith("aria")) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

// Numbers as people read them: four digits that matter; NaN and infinity as such.
function fmt(value) {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value);
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

// Colour tables, 256 x RGB, interpolated from a few stops: `sequential` for counts, `diverging` with white at zero.
function table(stops) {
  const out = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2), part = at - low;
    for (let c = 0; c < 3; c++) out[3 * i + c] = Math.round(stops[low][c] * (1 - part) + stops[low + 1][c] * part);
  }
  return out;
}
const COLOURS = {
  gray: table([[0, 0, 0], [255, 255, 255]]),
  diverging: table([[5, 48, 97], [33, 102, 172], [103, 169, 207], [247, 247, 247], [239, 138, 98], [178, 24, 43], [103, 0, 31]]),
  sequential: table([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]),
};
const UNKNOWN = [140, 90, 200];   // NaN: a colour that no table has

// Paints numbers [h, w] into an offscreen canvas at one pixel per value.
function picture(data, width, height, low, high, colours) {
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const image = new ImageData(width, height), lut = COLOURS[colours], scale = 255 / ((high - low) || 1);
  for (let i = 0; i < width * height; i++) {
    const value = data[i], at = 4 * i;
    if (Number.isNaN(value)) { canvas.bad = true; [image.data[at], image.data[at + 1], image.data[at + 2]] = UNKNOWN; }
    else {
      const c = 3 * Math.max(0, Math.min(255, Math.round((value - low) * scale)));
      image.data[at] = lut[c]; image.data[at + 1] = lut[c + 1]; image.data[at + 2] = lut[c + 2];
    }
    image.data[at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// The same from levels 0..254 of the scale, 255 for NaN: a quarter of the bytes, for large matrices.
function levels(data, width, height, colours) {
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer), lut = COLOURS[colours], shades = new Uint32Array(256);
  for (let i = 0; i < 255; i++) { const c = 3 * Math.round(i * 255 / 254); shades[i] = 0xff000000 | (lut[c + 2] << 16) | (lut[c + 1] << 8) | lut[c]; }
  shades[255] = 0xff000000 | (UNKNOWN[2] << 16) | (UNKNOWN[1] << 8) | UNKNOWN[0];
  for (let i = 0; i < pixels.length; i++) { pixels[i] = shades[data[i]]; if (data[i] === 255) canvas.bad = true; }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A colour bar with its two ends; where the picture beside it has NaN (`bad`), what colour that is.
function scaleBar(low, high, colours, bad = false, align = false) {
  const lut = COLOURS[colours];
  const stops = [0, 51, 102, 153, 204, 255].map((i) => `rgb(${lut[3 * i]},${lut[3 * i + 1]},${lut[3 * i + 2]})`);
  return el("div", { class: "row num", style: "gap:6px;font-size:12px", "aria-label": `colour scale ${fmt(low)} to ${fmt(high)}` },
    el("span", { style: align ? "min-width:9ch;text-align:right" : "" }, fmt(low)), el("span", { style: `width:140px;height:10px;border-radius:3px;border:1px solid var(--rw-line);background:linear-gradient(to right,${stops})` }),
    fmt(high), bad && el("span", { class: "row", style: "gap:5px;margin-left:10px" }, el("span", { style: `width:10px;height:10px;border-radius:2px;background:rgb(${UNKNOWN})` }), "NaN"));
}

// Draws at the screen's own resolution; returns a context in CSS pixels.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// A colour of the page. Asking for a style makes the browser work it all out anew: each is asked for once per theme.
const inks = {};
function ink(name) {
  const key = `${document.documentElement.dataset.rwTheme} ${name}`;
  if (!inks[key]) inks[key] = getComputedStyle(document.documentElement).getPropertyValue(`--rw-${name}`).trim();
  return inks[key];
}

// Whether a key is meant for the control that has the focus, not for the page: a box that is ticked leaves all but the space.
function forControl(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return true;
  const { tagName = "", type } = event.composedPath()[0];
  if (tagName === "BUTTON" || (tagName === "INPUT" && type === "checkbox")) return event.key === " ";
  return /^(INPUT|TEXTAREA|SELECT)$/.test(tagName);
}
// A list or slider that was set by the mouse gives the keys back to the page: the next arrow is a step, not another choice.
function handBack(root) {
  let mouse = false;
  root.addEventListener("pointerdown", () => { mouse = true; }, true);
  root.addEventListener("keydown", () => { mouse = false; }, true);
  root.addEventListener("change", ({ target }) => { if (mouse && (target.tagName === "SELECT" || target.type === "range")) target.blur(); });
}

// A surface is a function (root, send) -> paint(frame); what could not be painted is said, never thrown away.
function surface(start) {
  return ({ model }) => {
    const root = el("div", { class: "root" });
    handBack(root);
    const send = (message) => model.send_msg(message);
    const paint = start(root, send, model);
    model.on("msg:custom", (event) => {
      const data = event && event.data !== undefined ? event.data : event;
      paint(data instanceof ArrayBuffer || ArrayBuffer.isView(data) ? unpack(data) : data);
    });
    queueMicrotask(() => send({ do: "ready", query: location.search, height: innerHeight, dark: document.documentElement.dataset.rwTheme === "dark" }));
    return root;
  };
}

// What stands where there is nothing to show: why, and what one may do about it, a button's [words, message].
function saying(root, text, action, send) {
  const sentence = text.charAt(0).toUpperCase() + text.slice(1);
  const act = action && el("button", { class: "primary", onclick: () => { act.disabled = true; act.textContent = action[2] || action[0]; send(action[1]); } }, action[0]);
  root.replaceChildren(el("div", { class: "card" }, el("div", { class: "empty", role: "status" }, el("div", {}, sentence), act && el("div", { style: "margin-top:14px" }, act))));
}
