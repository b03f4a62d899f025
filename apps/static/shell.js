// The frame of the page: run, facts of the step, scrubber, tabs, keys. One request is in flight; the newest step wins.
const KEYS = [
  ["← / →", "one step back / forward"], ["Shift + ← / →", "100 steps back / forward"], ["Home / End", "first / last step"],
  ["Space", "play or stop"], ["r", "play backward, or the other way"], ["0 … 8", "tabs, from the overview to SQL"], ["u / Shift + u", "undo / redo a change of view"],
  ["t", "light or dark"], ["g", "type a step number"], ["l", "jump to live: go along with a run that goes on"],
  ["p", "pause or resume a run that goes on"], ["n", "one step of a paused run"], ["Shift + drag on the track", "choose a range to loop; Esc clears it"], ["[ / ]", "the image before / after, where the batch has the focus"], ["?", "this list"],
];

// Icons as paths on a 16 x 16 field, drawn in the colour of their button.
const ICONS = {
  first: "M4 3v10M12.5 3.5 7 8l5.5 4.5z", back: "M10 3.5 5.5 8l4.5 4.5", play: "M5 3.2v9.6L12.6 8z", pause: "M5.5 3.5v9M10.5 3.5v9", forth: "M6 3.5 10.5 8 6 12.5",
  last: "M12 3v10M3.5 3.5 9 8l-5.5 4.5z", turn: "M3 5.5h9.5M10 3l2.5 2.5L10 8M13 10.5H3.5M6 8l-2.5 2.5L6 13", undo: "M6 3 3 6l3 3M3.4 6h6a3.4 3.4 0 0 1 0 7H7", redo: "M10 3l3 3-3 3M12.6 6h-6a3.4 3.4 0 0 0 0 7H9",
  theme: "M8 2.5a5.5 5.5 0 1 0 0 11zM8 2.5a5.5 5.5 0 0 1 0 11",
};
const FILLED = new Set(["play", "first", "last", "theme"]);
function icon(name) {
  const holder = document.createElement("span");
  holder.className = "icon";
  holder.innerHTML = `<svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" stroke-linejoin="round">${ICONS[name].split(/(?=M)/).map((d) => `<path d="${d}" fill="${FILLED.has(name) && /z/.test(d) ? "currentColor" : "none"}"/>`).join("")}</svg>`;
  return holder;
}

export const render = surface((root, send) => {
  if (!document.getElementById("rw-css")) document.head.append(el("style", { id: "rw-css" }, CSS));
  let stored = null;
  try { stored = localStorage.getItem("rw-theme"); } catch { stored = null; }
  setTheme(stored ? stored === "dark" : matchMedia("(prefers-color-scheme: dark)").matches, false);

  const s = { first: 0, last: 0, step: 0, sent: null, sentAt: 0, seq: 0, waiting: false, playing: 0, rate: 10, range: null, marks: {}, loss: [], tabs: [], dark: false, live: false, following: false, status: "", lost: false };
  // An input with a list is a list that filters as one types.
  const names = el("datalist", { id: "runs" });
  const run = el("input", { "aria-label": "run", spellcheck: false, autocomplete: "off", style: "width:180px;font-weight:600;text-overflow:ellipsis", onfocus: () => { if (!run.readOnly) run.value = ""; },
    onblur: () => { run.value = s.run; }, onchange: () => { if (s.runs.some(([name]) => name === run.value)) send({ do: "run", run: run.value }); run.blur(); } });
  run.setAttribute("list", "runs");
  const badge = el("span", { class: "chip" });
  const facts = el("div", { class: "facts" });
  const button = (text, label, action) => el("button", { title: label, "aria-label": label, onclick: action, class: ICONS[text] ? "glyph" : "" }, ICONS[text] ? icon(text) : text);
  const undo = button("undo", "undo a change of view (u)", () => send({ do: "undo" }));
  const redo = button("redo", "redo (Shift+u)", () => send({ do: "redo" }));
  const python = el("button", { title: "the few lines that get what is shown in a notebook", onclick: copy }, "Copy Python");
  const save = el("select", { "aria-label": "export what is shown", title: "export what is shown", style: "width:84px", onchange: () => { keep(save.value); save.value = ""; } },
    el("option", { value: "" }, "Export"), ["csv", "json", "parquet", "npz", "png", "svg"].map((f) => el("option", { value: f }, f.toUpperCase())));
  const theme = button("theme", "light or dark (t)", () => setTheme(!s.dark));
  const help = button("?", "shortcuts (?)", () => showHelp());
  const play = button("play", "play (space)", () => toggle(1));
  const number = el("input", { type: "number", "aria-label": "step number", class: "num", style: "width:92px", onchange: () => (number.value.trim() ? go(Number(number.value)) : draw()),
    onkeydown: ({ key }) => { if (key === "Escape") number.value = s.step; if (key === "Enter" || key === "Escape") setTimeout(() => number.blur()); }, onblur: () => { number.value = s.step; } });
  const of = el("span", { class: "soft num" });
  const rate = el("select", { "aria-label": "steps per second", onchange: () => { s.rate = Number(rate.value); } },
    [1, 5, 10, 30, 60, 300, 1000].map((r) => el("option", { value: r, selected: r === 10 }, `${r}/s`)));
  const direction = button("turn", "play backward, or the other way (r)", () => turn());
  const live = el("button", { hidden: true, class: "live-button", title: "go along with the run, at its newest step (l)", onclick: () => follow() });
  const range = el("button", { hidden: true, title: "clear the loop (Esc)", onclick: () => loop(null) });
  const track = el("canvas", { tabIndex: 0, role: "slider", "aria-label": "step", style: "width:100%;height:70px;touch-action:none;cursor:pointer" });
  const legend = el("div", { class: "row soft", style: "font-size:12px;gap:14px;min-height:18px" });
  const tabs = el("div", { role: "tablist", class: "row tabs" });
  const problem = el("div", { role: "status", class: "problem", hidden: true });
  const dialog = el("dialog", { "aria-label": "shortcuts" });
  const place = el("div");
  const strip = liveStrip(place, send);

  root.append(
    el("header", { class: "row top" }, el("strong", { class: "logo" }, "Rewind"), run, names, badge, facts,
      el("span", { class: "grow" }), python, save, undo, redo, theme, help),
    el("div", { class: "card scrub" },
      el("div", { class: "row", style: "flex-wrap:nowrap" },
        button("first", "first step (Home)", () => go(s.first)), button("back", "one step back (←)", () => go(s.step - 1)), play,
        button("forth", "one step forward (→)", () => go(s.step + 1)), button("last", "last step (End)", () => end()), live, direction, rate,
        number, of, range, el("span", { class: "grow" }), legend),
      track),
    place, problem, tabs, dialog);

  function setTheme(dark, tell = true) {
    document.documentElement.dataset.rwTheme = dark ? "dark" : "light";
    if (!tell) return;
    try { localStorage.setItem("rw-theme", dark ? "dark" : "light"); } catch { /* private window: it is not remembered */ }
    s.dark = dark; send({ do: "theme", dark }); draw();
  }
  s.dark = document.documentElement.dataset.rwTheme === "dark";

  // -- going somewhere: the cursor moves at once, what is there follows
  function go(step) {
    if (!Number.isFinite(step)) return;
    s.step = Math.max(s.first, Math.min(s.last, Math.round(step)));
    s.following = false; stand();
    number.value = s.step; draw(); ask();
  }
  function follow() {
    if (!s.live || s.following) return;
    if (s.playing) toggle();
    s.following = true; s.step = s.last; stand(); draw();
    send({ do: "follow" });
  }
  const end = () => (s.live ? follow() : go(s.last));
  function ask() {
    if (s.waiting || s.following || s.sent === s.step) return;
    s.waiting = true; s.sent = s.step; s.seq += 1; s.sentAt = performance.now();
    send({ do: "step", step: s.step, seq: s.seq });
  }
  function arrived(seq) {
    if (seq !== s.seq) return;
    requestAnimationFrame(() => setTimeout(() => {
      s.waiting = false;
      window.rewindTimes = [...(window.rewindTimes || []).slice(-999), performance.now() - s.sentAt];
      root.dataset.shown = s.sent;
      ask();
    }));
  }
  let timer = null, ticked = 0;
  function toggle(way = 1, keep = false) {
    s.playing = s.playing && !keep ? 0 : way;
    play.replaceChildren(icon(s.playing ? "pause" : "play")); play.classList.toggle("on", !!s.playing); direction.classList.toggle("on", s.playing < 0);
    clearTimeout(timer); ticked = performance.now();
    if (s.playing) tick();
  }
  const turn = () => toggle(s.playing < 0 ? 1 : -1, true);
  function tick() {
    if (!s.playing) return;
    if (!s.waiting) {
      const [low, high] = s.range || [s.first, s.last], now = performance.now(), end = s.playing > 0 ? high : low;
      // Faster than a screen can show them, steps are left out.
      let next = s.step + s.playing * (s.rate > 60 ? Math.max(1, Math.round(s.rate * Math.min(1, (now - ticked) / 1000))) : 1);
      ticked = now;
      if (next > high || next < low) {
        if (s.step !== end && s.step >= low && s.step <= high) next = end;
        else if (!s.range) { toggle(); if (next > high) follow(); return; }
        else next = s.playing > 0 ? low : high;
      }
      go(next);
    }
    timer = setTimeout(tick, 1000 / Math.min(60, s.rate));
  }
  function loop(chosen) {
    s.range = chosen; range.hidden = !chosen;
    if (chosen) range.textContent = `loop ${chosen[0]}–${chosen[1]} ✕`;
    draw();
  }

  // -- the track: the loss as a line, marks above and below it, the cursor
  const x = (step, width) => 8 + ((step - s.first) / Math.max(1, s.last - s.first)) * (width - 16);
  const at = (event) => {
    const box = track.getBoundingClientRect();
    return Math.round(s.first + Math.max(0, Math.min(1, (event.clientX - box.left - 8) / (box.width - 16))) * (s.last - s.first));
  };
  // Round step numbers, some 90 pixels apart.
  function ticks(width) {
    const span = Math.max(1, s.last - s.first), rough = span / Math.max(1, width / 90), size = 10 ** Math.floor(Math.log10(rough));
    const gap = Math.max(1, [1, 2, 5, 10].map((n) => n * size).find((n) => n >= rough)), found = [];
    for (let k = Math.ceil(s.first / gap) * gap; k <= s.last; k += gap) found.push(k);
    return found;
  }
  const TOP = 6, FOOT = 52, TALL = 70;
  // All but the cursor is painted once, until something of it changes: a step only moves the cursor.
  let back = null;
  function backdrop(width) {
    const theme = document.documentElement.dataset.rwTheme, known = [width, theme, window.devicePixelRatio, s.first, s.last, s.loss, s.marks, s.range];
    if (back && back.known.every((value, n) => value === known[n])) return back.canvas;
    const canvas = document.createElement("canvas"), band = FOOT - TOP, c = sized(canvas, width, TALL);
    back = { known, canvas };
    c.fillStyle = ink("track"); c.beginPath(); c.roundRect(0, TOP, width, band, 6); c.fill();
    if (s.range) { c.fillStyle = ink("accent") + "33"; c.fillRect(x(s.range[0], width), TOP, x(s.range[1], width) - x(s.range[0], width), band); }
    const mark = (steps, colour, top, length, wide = 1) => { c.fillStyle = colour; for (const k of steps || []) c.fillRect(x(k, width) - wide / 2, top, wide, length); };
    if (epochs()) mark(s.marks.epochs, ink("line"), TOP, band);
    c.font = "11px system-ui, sans-serif"; c.textBaseline = "alphabetic"; c.fillStyle = ink("soft");
    for (const k of ticks(width)) {
      const word = String(k), half = c.measureText(word).width / 2;
      c.fillText(word, Math.max(0, Math.min(width - 2 * half, x(k, width) - half)), TALL - 3);
    }
    let run = [];
    const height = (y) => FOOT - 5 - y * (band - 13);
    const stroke = () => {  // the loss, and what lies under it
      if (!run.length) return;
      c.beginPath(); run.forEach(([px, py], i) => (i ? c.lineTo(px, py) : c.moveTo(px, py)));
      c.strokeStyle = ink("accent"); c.lineWidth = 1.4; c.lineJoin = "round"; c.stroke();
      c.lineTo(run.at(-1)[0], FOOT); c.lineTo(run[0][0], FOOT); c.closePath();
      c.fillStyle = ink("accent"); c.globalAlpha = 0.13; c.fill(); c.globalAlpha = 1;
      run = [];
    };
    for (const [step, y] of s.loss) { if (y === null) stroke(); else run.push([x(step, width), height(y)]); }
    stroke();
    // What is proven lies as a line under the track; what diverged stands out of it.
    const one = Math.max(2, x(s.first + 1, width) - x(s.first, width));
    c.fillStyle = ink("green");
    for (const [a, b] of s.marks.verified || []) c.fillRect(x(a, width) - one / 2, FOOT + 1, Math.max(2, x(b, width) - x(a, width) + one), 2.5);
    mark(s.marks.keyframes, ink("soft"), FOOT - 4, 4, 2);
    mark(s.marks.diverged, ink("red"), FOOT - 8, 12, 2);
    mark(s.marks.sessions, ink("violet"), 0, FOOT, 2);
    mark(s.marks.events, ink("yellow"), 0, 8, 2);
    // A branch leaves the track upwards.
    c.fillStyle = ink("green");
    for (const k of s.marks.branches || []) { const at = x(k, width); c.fillRect(at - 1, 0, 2, FOOT - TOP); c.beginPath(); c.moveTo(at, 0); c.lineTo(at + 9, 0); c.lineTo(at, 9); c.fill(); }
    mark(s.marks.nan, ink("red"), 0, 8, 2);
    return canvas;
  }
  function draw() {
    const width = track.clientWidth || 600, band = FOOT - TOP, c = sized(track, width, TALL);
    track.style.width = "100%";
    c.drawImage(backdrop(width), 0, 0, width, TALL);
    const px = x(s.step, width);
    c.fillStyle = ink("ink"); c.fillRect(px - 1, TOP - 2, 2, band + 4);
    c.beginPath(); c.arc(px, TOP, 5.5, 0, 7); c.fill();
    c.fillStyle = ink("card"); c.beginPath(); c.arc(px, TOP, 2, 0, 7); c.fill();
    track.setAttribute("aria-valuemin", s.first); track.setAttribute("aria-valuemax", s.last); track.setAttribute("aria-valuenow", s.step);
  }
  const epochs = () => { const count = (s.marks.epochs || []).length; return count > 1 && count < 400; };
  let drag = null;
  track.addEventListener("pointerdown", (event) => {
    track.setPointerCapture(event.pointerId);
    drag = event.shiftKey ? at(event) : -1;
    if (drag < 0) go(at(event));
  });
  track.addEventListener("pointermove", (event) => {
    track.title = `step ${at(event)}`;
    if (drag === null) return;
    if (drag < 0) go(at(event)); else loop([Math.min(drag, at(event)), Math.max(drag, at(event))]);
  });
  track.addEventListener("pointerup", () => { drag = null; });
  new ResizeObserver(draw).observe(track);

  // -- keys
  function onKey(event) {
    if (!root.isConnected) { document.removeEventListener("keydown", onKey); return; }
    if (dialog.open || forControl(event)) return;
    const far = event.shiftKey ? 100 : 1;
    const act = {
      ArrowLeft: () => go(s.step - far), ArrowRight: () => go(s.step + far), Home: () => go(s.first), End: () => end(), l: () => follow(),
      " ": () => toggle(1), r: () => turn(), u: () => send({ do: "undo" }), U: () => send({ do: "redo" }),
      t: () => setTheme(!s.dark), g: () => { number.focus(); number.select(); }, "?": () => showHelp(), Escape: () => loop(null),
    }[event.key] || (/^[0-8]$/.test(event.key) ? () => s.tabs[event.key] && send({ do: "tab", tab: s.tabs[event.key].name }) : null);
    if (!act) return;
    event.preventDefault(); act();
  }
  document.addEventListener("keydown", onKey);
  function showHelp() {
    const list = el("dl");
    const find = el("input", { type: "search", placeholder: "find a shortcut", "aria-label": "find a shortcut", style: "width:100%", oninput: fill, onkeydown: ({ key }) => { if (key === "Escape") dialog.close(); } });
    function fill() {
      const wanted = find.value.toLowerCase();
      list.replaceChildren(...KEYS.filter((k) => k.join(" ").toLowerCase().includes(wanted)).flatMap(([k, what]) => [el("dt", { class: "mono" }, k), el("dd", {}, what)]));
    }
    fill();
    dialog.replaceChildren(el("h2", {}, "Shortcuts"), find, list, el("button", { onclick: () => dialog.close() }, "Close"));
    if (!dialog.open) dialog.showModal();
  }

  function copy() {
    const said = (text) => { python.textContent = text; setTimeout(() => { python.textContent = "Copy Python"; }, 1500); };
    navigator.clipboard.writeText(s.python || "").then(() => said("Copied"), () => {
      dialog.replaceChildren(el("h2", {}, "Python"), el("pre", { tabIndex: 0 }, s.python || ""), el("button", { onclick: () => dialog.close() }, "Close"));
      dialog.showModal();
    });
  }
  function keep(form) {
    if (form === "png" || form === "svg") savePhoto(root.getRootNode().host, form, `${s.run}-${s.tab}-${s.step}`.replaceAll("/", "-"));
    else if (form) send({ do: "export", form });
  }
  function download(address) {
    const link = el("a", { href: address, download: "" });
    document.body.append(link); link.click(); link.remove();
  }

  // -- what the server says
  function begin(frame) {
    Object.assign(s, { first: frame.first, last: frame.last, marks: frame.marks, tabs: frame.tabs, loss: frame.loss, sent: frame.step, step: frame.step, there: frame.step, waiting: false, range: null });
    Object.assign(s, { run: frame.run, runs: frame.runs });
    run.value = frame.run; run.title = frame.runs.length > 1 ? `${frame.runs.length} runs: type to find one` : frame.run; run.readOnly = frame.runs.length < 2;
    names.replaceChildren(...frame.runs.map(([name, words]) => el("option", { value: name }, words)));
    s.following = frame.following;
    line.hear(frame.proof);
    if (document.hidden) send({ do: "seen", visible: false });
    beat(frame);
    explain(frame); outline(frame);
  }
  // -- how the run stands: the badge is never older than the last word of the server
  function stand() {
    const word = s.lost ? "connecting" : s.status === "running" ? "live" : s.status;
    badge.className = `chip ${word}`; badge.textContent = word; root.dataset.status = word;
    live.hidden = !s.live;
    live.classList.toggle("on", s.following);
    const behind = s.last - s.step;
    live.textContent = s.following ? "following" : behind > 0 ? `jump to live (${behind})` : "jump to live";
    live.setAttribute("aria-pressed", s.following);
  }
  function beat(frame) {
    const grown = frame.last !== s.last;
    if (frame.live !== s.live) s.following = frame.following;
    Object.assign(s, { first: frame.first, last: frame.last, status: frame.status, live: frame.live });
    of.textContent = frame.first ? `of ${frame.first} … ${frame.last}` : `of ${frame.last}`;
    number.min = frame.first; number.max = frame.last;
    root.dataset.last = frame.last;
    stand();
    if (grown) draw();
  }
  const line = watchLine((lost) => {
    s.lost = lost; stand();
    clearTimeout(s.hint);
    if (!lost) { if (s.hinted) problem.hidden = true; s.hinted = false; return; }
    s.hint = setTimeout(() => { if (s.lost) { s.hinted = true; problem.hidden = false; problem.textContent = "No answer from the server. This page comes back by itself when `rewind app` is started again on the same traces."; } }, 6000);
  });
  let settled = null;
  addEventListener("resize", () => { clearTimeout(settled); settled = setTimeout(() => send({ do: "room", height: innerHeight }), 250); });
  document.addEventListener("visibilitychange", () => send({ do: "seen", visible: !document.hidden }));
  function explain(frame) {
    const shown = [["keyframes", "soft", "keyframe"], ["nan", "red", "loss not finite"], ["diverged", "red", "diverged"], ["sessions", "violet", "new session"], ["events", "yellow", "event"], ["branches", "green", "branch"]];
    const proven = (frame.marks.verified || []).length;
    const swatch = (look, text) => el("span", {}, el("span", { style: `display:inline-block;margin-right:6px;${look}` }), text);
    legend.replaceChildren(...(frame.loss.length ? [swatch("width:14px;height:2px;vertical-align:middle;background:var(--rw-accent)", "loss")] : []),
      ...(proven ? [swatch("width:14px;height:3px;vertical-align:middle;background:var(--rw-green)", "verified")] : []),
      ...(epochs() ? [swatch("width:1px;height:11px;background:var(--rw-soft);opacity:.5", "epoch")] : []), ...shown.filter(([name]) => (frame.marks[name] || []).length).map(([, colour, text]) =>
      el("span", {}, el("span", { style: `display:inline-block;width:3px;height:11px;margin-right:5px;background:var(--rw-${colour})` }), text)));
  }
  function outline(frame) {
    tabs.replaceChildren(...frame.tabs.map((t, i) => el("button", { role: "tab", "data-tab": t.name, title: `${i}`, onclick: () => send({ do: "tab", tab: t.name }) }, t.title)));
    document.title = `${frame.run} – Rewind`;
  }
  // The address bar follows at most five times a second: browsers refuse more in the long run.
  let addressed = null;
  function address() { if (location.search !== `?${s.query}`) history.replaceState(null, "", `${location.pathname}?${s.query}`); }
  function show(frame) {
    for (const tab of tabs.children) { const on = tab.dataset.tab === frame.tab; tab.classList.toggle("on", on); tab.setAttribute("aria-selected", on); }
    facts.replaceChildren(...frame.facts.map(([name, value]) => (name ? el("div", { style: `min-width:${{ step: String(s.last).length, epoch: 5 }[name] || 9}ch` }, el("span", { class: "soft" }, name), el("b", { class: "num" }, fmt(value))) : el("span", { class: `chip ${value}` }, value))));
    s.python = frame.python; s.tab = frame.tab; undo.disabled = !frame.undo; redo.disabled = !frame.redo;
    problem.hidden = !frame.problem; problem.textContent = frame.problem || "";
    if (!frame.push) s.following = frame.following;
    // A push that crossed with the user's own going back is answered, and not gone along with.
    // Nor is a step that the server had before: what was set on a tab is told of while the user's next step is on its way.
    const moved = frame.step !== s.there;
    s.there = frame.step;
    if (moved && frame.step !== s.step && !frame.ack && (!frame.push || s.following)) s.step = s.sent = frame.step;
    if (root.getRootNode().activeElement !== number) number.value = s.step;
    s.query = frame.query;
    // Whether one follows is in the address at once: who reloads right after goes on as he was.
    const live = (query) => query.includes("step=live");
    if (addressed && live(s.query) !== live(location.search)) address();
    if (!addressed) { address(); addressed = setTimeout(() => { addressed = null; address(); }, 200); }
    stand(); draw();
    if (frame.ack) arrived(frame.ack); else root.dataset.shown = frame.step;
    if (frame.push) requestAnimationFrame(() => setTimeout(() => send({ do: "painted", push: frame.push })));
  }
  function retrack(frame) { Object.assign(s, { marks: frame.marks, loss: frame.loss }); explain(frame); draw(); }
  const takes = { begin, live: strip, track: retrack, pulse: (frame) => { line.hear(); beat(frame); }, download: (frame) => download(frame.address) };
  return (frame) => (takes[frame.kind] || show)(frame);
});
