// A live run: how far it is, what holds it, and the buttons that do; nothing of this is shown for a run that is over.
const BUSY = { pausing: "pausing at the end of this step …", stepping: "making steps …", stopping: "stopping at the end of this step …" };

function span(seconds) {
  const whole = Math.round(seconds), h = Math.floor(whole / 3600), m = Math.floor((whole % 3600) / 60), two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(whole % 60)}` : `${m}:${two(whole % 60)}`;
}
// What is typed as a value: a number, true, false, null or a list where it reads so, else text ("0.5x" halves).
function typed(text) {
  try { return JSON.parse(text); } catch { return text.trim(); }
}

function liveStrip(root, send) {
  const s = { status: "", live: false, control: {}, progress: {}, names: "" };
  const button = (text, title, act) => el("button", { title, "aria-label": title, onclick: act }, text);
  const pause = button("Pause", "pause or resume the run (p)", () => toggle());
  const step = button("Step", "let the paused run make steps (n)", () => more());
  const count = el("input", { type: "number", min: 1, value: 1, "aria-label": "how many steps", class: "num" });
  const stop = button("Stop", "end the run", () => ask());
  const bars = { run: bar("run"), batch: bar("epoch"), queue: bar("queue") };
  const pace = el("div", { class: "pace num" });
  const words = el("span", { class: "soft said", role: "status" });
  const keep = button("Keep it paused", "hold the run by hand: it stays paused when this app ends", () => send({ do: "keep" }));
  const name = el("select", { "aria-label": "hyperparameter", onchange: () => fill() });
  const value = el("input", { "aria-label": "new value", class: "num", spellcheck: false, onkeydown: (e) => { if (e.key === "Enter") change(); } });
  const set = button("Set", "change it from the next step on; 0.5x halves it", () => change());
  const pending = el("span", { class: "num" });
  const held = el("div", { class: "held" }, words, keep, el("span", { class: "grow" }), el("label", {}, "set", name), value, set, pending);
  const counts = el("span", { class: "soft num", style: "font-size:12px" });
  const refused = el("div", { class: "refused", role: "alert", hidden: true });
  const problem = el("div", { class: "problem", role: "status", hidden: true });
  const dialog = el("dialog", { "aria-label": "stop the run" }, el("h2", {}, "End this run?"),
    el("p", {}, "It stops at the end of its step, as after Ctrl-C. What was recorded is whole."),
    el("div", { class: "buttons" }, el("button", { class: "primary", onclick: () => { dialog.close(); send({ do: "stop" }); } }, "End the run"), el("button", { onclick: () => dialog.close() }, "Let it go on")));
  const buttons = el("div", { class: "buttons" }, pause, step, count, stop);
  const card = el("section", { class: "card strip", "aria-label": "live run", hidden: true },
    el("div", { class: "line" }, buttons, el("div", { class: "bars" }, ...Object.values(bars).map((b) => b.root)), pace, counts), held, refused, problem, dialog);
  root.append(card);

  function bar(label) {
    const title = el("span", { class: "soft" }, label), figure = el("span", { class: "num" }), filled = el("div", { class: "fill" });
    const rail = el("div", { class: "rail", role: "progressbar", "aria-label": `progress: ${label}` }, filled);
    return { root: el("div", { class: "bar" }, el("div", { class: "words" }, title, figure), rail), title, figure, filled, rail };
  }
  function paint(b, label, done, total) {
    b.root.hidden = done === null || done === undefined;
    b.root.style.display = b.root.hidden ? "none" : "";
    if (b.root.hidden) return;
    const known = typeof total === "number" && total > 0, part = known ? Math.min(1, done / total) : 0;
    b.title.textContent = label; b.title.title = label;
    b.figure.textContent = known ? `${done} / ${total}` : String(done);
    b.rail.style.visibility = known ? "" : "hidden";
    b.filled.style.width = `${100 * part}%`;
    b.rail.setAttribute("aria-valuenow", done);
    if (known) b.rail.setAttribute("aria-valuemax", total); else b.rail.removeAttribute("aria-valuemax");
  }

  const paused = () => s.live && s.status === "paused";
  function toggle() { if (s.live) send({ do: paused() || s.control.status === "pausing" ? "resume" : "pause" }); }
  function more() { if (paused()) send({ do: "advance", steps: Math.max(1, Math.round(Number(count.value)) || 1) }); }
  function ask() { if (s.live && !dialog.open) dialog.showModal(); }
  function change() { if (name.value && value.value.trim()) { send({ do: "set", name: name.value, value: typed(value.value) }); value.value = ""; } }
  function fill() {
    const known = (s.control.hyperparameters || {})[name.value];
    value.placeholder = known === undefined ? "" : JSON.stringify(known); value.value = "";
  }
  function onKey(event) {
    if (!root.isConnected) { document.removeEventListener("keydown", onKey); return; }
    if (forControl(event)) return;
    if (event.key === "p") toggle(); else if (event.key === "n") more();
  }
  document.addEventListener("keydown", onKey);

  function said(frame) {
    const by = frame.control.by_hand;
    if (BUSY[frame.control.status]) return BUSY[frame.control.status];
    if (!paused() || by === undefined) return "";
    const at = `before step ${frame.control.step}`;
    return by ? `Paused by hand ${at}. Resume, or: rewind resume ${frame.path}` : `Paused ${at} by an app: goes on when its last page is closed`;
  }
  function counted({ offered, kept, written, dropped, lost, cause }) {
    const missing = lost ? `steps ${lost} are missing${cause ? `: ${String(cause).replace(/^[\d\s,-]+: /, "")}` : ""}` : "";
    if (!offered) return missing;
    return `${offered} offered, ${kept} kept, ${written} written, ${dropped} dropped${missing ? `; ${missing}` : ""}`;
  }
  return (frame) => {
    Object.assign(s, { status: frame.status, live: frame.live, control: frame.control, progress: frame.progress });
    const p = frame.progress, busy = !!BUSY[frame.control.status];
    card.hidden = !frame.shown;
    card.classList.toggle("paused", paused()); card.classList.toggle("over", !frame.live);
    card.dataset.control = frame.control.status || "";
    buttons.style.display = frame.live ? "" : "none";
    pause.textContent = paused() || frame.control.status === "pausing" ? "Resume" : "Pause";
    pause.classList.toggle("primary", paused());
    step.disabled = !paused() || busy; count.disabled = !paused();
    paint(bars.run, "run", p.current_step, p.total_steps);
    paint(bars.batch, p.current_file || (p.epoch === null ? "epoch" : `epoch ${p.epoch}`), p.batch_step, p.batch_total_steps);
    paint(bars.queue, "queue", p.batch_number, p.batch_queue_size);
    const rate = p.steps_per_second ? `${fmt(Number(p.steps_per_second.toPrecision(3)))} steps/s` : "";
    const eta = frame.live && p.eta_seconds !== null ? `ETA ${span(p.eta_seconds)}` : "";
    pace.textContent = [frame.silent ? `no step for ${span(frame.silent)}` : rate, eta].filter(Boolean).join("  ·  ");
    counts.textContent = counted(frame.counts); counts.title = "of the epochs that are over";
    counts.style.color = frame.counts.dropped || frame.counts.lost ? "var(--rw-red)" : "";
    words.textContent = words.title = [said(frame), frame.note].filter(Boolean).join("; ");
    keep.hidden = !(paused() && frame.control.by_hand === false);
    held.style.display = frame.live && (paused() || busy) ? "" : "none";
    const names = Object.keys(frame.control.hyperparameters || {});
    if (names.length && names.join() !== s.names) {
      s.names = names.join(); name.replaceChildren(...names.map((n) => el("option", { value: n }, n)));
      name.value = names.find((n) => n.endsWith(".lr")) || names[0]; if (!value.value) fill();
    } else if (names.length && root.getRootNode().activeElement !== value) value.placeholder = JSON.stringify(frame.control.hyperparameters[name.value]);
    const changes = Object.entries(frame.control.changes || {}).map(([n, v]) => `${n} → ${typeof v === "string" ? v : JSON.stringify(v)}`);
    pending.textContent = changes.length ? `${changes.join(", ")} from the next step` : ""; pending.title = pending.textContent;
    refused.hidden = !frame.refused; refused.textContent = frame.refused ? `Not written: ${frame.refused}. Training goes on.` : "";
    problem.hidden = !frame.problem; problem.textContent = frame.problem || "";
  };
}
