// The feature table: any number of rows, of which only those in sight are in the page. Sorts and filters here.
const TIPS = { winner: "win rate over 0.05", contender: "win rate from 0.01 to 0.05", dead: "win rate under 0.01", unknown: "win rate is NaN" };
const ROW = 26;
export const render = surface((root, send) => {
  const s = { names: [], columns: {}, statuses: [], order: [], by: "feature", down: false, chosen: 0, filter: "", status: "" };
  const find = el("input", { type: "search", placeholder: "filter: 12, dead, win_rate>0.05", "aria-label": "filter features", style: "width:260px", oninput: () => { s.filter = find.value.trim(); arrange(); clearTimeout(s.typing); s.typing = setTimeout(typed, 400); }, onchange: () => s.typing && typed() });
  function typed() { clearTimeout(s.typing); s.typing = null; send({ do: "set", name: "filter", value: s.filter }); }
  const layer = el("select", { "aria-label": "layer", onchange: () => send({ do: "layer", layer: layer.value }) });
  const counts = el("span", { class: "row" });
  const head = el("div", { class: "head line", role: "row" });
  const sums = el("div", { class: "sums" });
  const pad = el("div", { style: "position:relative" });
  const none = el("div", { class: "soft", role: "status", style: "padding:16px 6px", hidden: true });
  const box = el("div", { class: "box", tabIndex: 0, role: "rowgroup", onscroll: () => requestAnimationFrame(rows) }, none, pad);
  const lost = el("div", { class: "dead", role: "status", style: "margin-bottom:8px;overflow-wrap:anywhere", hidden: true });
  const card = el("div", { class: "card" }, el("div", { class: "row", style: "margin-bottom:10px" }, el("label", {}, "layer", layer), find, el("span", { class: "grow" }), counts), lost,
    el("div", { class: "wide", role: "table", "aria-label": "features" }, head, box, sums));

  // As many rows as the window has room for.
  function stretch() {
    const room = innerHeight - (box.getBoundingClientRect().top + scrollY) - sums.offsetHeight - 44;
    box.style.height = `${ROW * Math.max(12, Math.min(s.order.length, Math.floor(room / ROW)))}px`;
  }
  function edge() { card.style.setProperty("--bar", `${box.offsetWidth - box.clientWidth}px`); }
  const resized = () => (root.isConnected ? (stretch(), edge(), rows()) : removeEventListener("resize", resized));
  addEventListener("resize", resized);
  const value = (name, i) => name === "feature" ? i : name === "status" ? s.statuses[i] : s.columns[name][i];
  // A column may be written as its heading is: `win rate > 0.05`.
  function ruled() {
    const [, word, sign, number] = s.filter.match(/^([^<>=]+?)\s*(<=|>=|<|>|=)\s*([-+\d.e]+)$/i) || [];
    const plain = (text) => text.toLowerCase().replaceAll(/[\s_]+/g, "_"), name = word && ["feature", ...s.names].find((n) => plain(n) === plain(word));
    return word && { word, name, sign, number: Number(number) };
  }
  function matches(i, rule) {
    if (!s.filter) return true;
    if (rule) {
      if (!rule.name) return false;
      const a = value(rule.name, i), b = rule.number;
      return { "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b, "=": a === b }[rule.sign];
    }
    return /^\d+$/.test(s.filter) ? String(i).startsWith(s.filter) : String(s.statuses[i]).includes(s.filter.toLowerCase());
  }
  function arrange() {
    const order = [], rule = ruled();
    for (let i = 0; i < s.statuses.length; i++) if (matches(i, rule)) order.push(i);
    none.hidden = !!order.length; none.textContent = rule && !rule.name ? `There is no column ${rule.word}.` : `No feature matches “${s.filter}”. A number, a status or a rule as win_rate>0.05 does.`;
    const way = s.down ? -1 : 1, nan = (v) => (typeof v === "number" && Number.isNaN(v) ? 1 : 0);
    order.sort((a, b) => { const p = value(s.by, a), q = value(s.by, b); return nan(p) - nan(q) || (p < q ? -way : p > q ? way : a - b); });
    s.order = order; pad.style.height = `${order.length * ROW}px`; rows();
  }
  function rows() {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4), last = Math.min(s.order.length, first + Math.ceil((box.clientHeight || 560) / ROW) + 8);
    const made = [];
    for (let place = first; place < last; place++) {
      const i = s.order[place];
      made.push(el("div", { class: `line body ${i === s.chosen ? "chosen" : ""}`, role: "row", style: `top:${place * ROW}px`, "aria-selected": i === s.chosen, "data-feature": i, onclick: () => send({ do: "feature", feature: i }) },
        el("span", { class: "num", role: "cell" }, String(i)), s.judged && el("span", { role: "cell" }, el("span", { class: `chip ${s.statuses[i]}`, title: TIPS[s.statuses[i]] || "" }, s.statuses[i])),
        s.names.map((n) => el("span", { class: "num right", role: "cell" }, fmt(s.columns[n][i])))));
    }
    pad.replaceChildren(...made);
  }
  function header() {
    const cell = (name, text) => el("button", { class: `${s.by === name ? "sorted" : ""} ${/^(feature|status)$/.test(name) ? "words" : ""}`, role: "columnheader", "aria-sort": s.by === name ? (s.down ? "descending" : "ascending") : "none",
      onclick: () => { s.down = s.by === name ? !s.down : name !== "feature"; s.by = name; header(); arrange(); send({ do: "set", name: "sort", value: (s.down ? "-" : "") + s.by }); } }, text + (s.by === name ? (s.down ? " ↓" : " ↑") : ""));
    head.replaceChildren(cell("feature", "feature"), ...(s.judged ? [cell("status", "status")] : []), ...s.names.map((n) => cell(n, n.replaceAll("_", " "))));
    card.style.setProperty("--cols", `76px ${s.judged ? "104px " : ""}repeat(${s.names.length}, minmax(72px, ${s.judged ? "1fr" : "170px"}))`);
    card.style.setProperty("--least", `${214 + 82 * s.names.length}px`);
  }
  function summary() {
    const line = (title, of) => el("div", { class: "line sum" }, el("b", {}, title), s.judged && el("span", {}), s.names.map((n) => el("span", { class: "num right" }, fmt(of(s.columns[n])))));
    const known = (v) => Array.from(v).filter((x) => !Number.isNaN(x));
    const over = (f) => (v) => { const k = known(v); return k.length ? f(k) : NaN; };
    sums.replaceChildren(line("mean", over((k) => k.reduce((a, b) => a + b, 0) / k.length)), line("min", over((k) => k.reduce((a, b) => Math.min(a, b)))), line("max", over((k) => k.reduce((a, b) => Math.max(a, b)))));
    const unknown = Object.fromEntries(s.names.map((n) => [n, s.columns[n].reduce((count, v) => count + Number.isNaN(v), 0)]));
    if (Object.values(unknown).some(Boolean)) sums.append(el("div", { class: "line sum unknown" }, el("b", {}, "NaN"), s.judged && el("span", {}), s.names.map((n) => el("span", { class: "num right" }, String(unknown[n])))));
    const tally = {};
    for (const word of s.statuses) tally[word] = (tally[word] || 0) + 1;
    counts.replaceChildren(...["winner", "contender", "dead", "unknown"].filter((w) => tally[w]).map((w) => el("span", { class: `chip ${w}` }, `${tally[w]} ${w}`)));
  }
  // How it is set, where that comes from a link or from undo.
  function take({ sort, filter }) {
    const down = sort.startsWith("-"), by = down ? sort.slice(1) : sort, typing = s.typing || root.getRootNode().activeElement === find;
    const known = by === "feature" || by === "status" || s.names.includes(by), turned = known && (by !== s.by || down !== s.down);
    if (turned) { s.by = by; s.down = down; header(); }
    if (!typing && filter !== s.filter) { s.filter = find.value = filter; }
  }
  return (frame) => {
    if (frame.kind === "theme") return;
    if (frame.kind === "feature") { s.chosen = frame.feature; take(frame); arrange(); return; }
    if (frame.problem) { saying(root, frame.problem, frame.action, send); return; }
    const names = Object.keys(frame.arrays), judged = frame.statuses.some((word) => word !== "-"), fresh = names.join() !== s.names.join() || judged !== s.judged;
    s.judged = judged; find.placeholder = judged ? "filter: 12, dead, win_rate>0.05" : `filter: 12, ${names[0]}>0.5`;
    s.names = names; s.columns = Object.fromEntries(names.map((n) => [n, frame.arrays[n].data]));
    s.statuses = frame.statuses; s.chosen = frame.feature;
    if (!names.includes(s.by) && s.by !== "status") { s.by = "feature"; s.down = false; }
    take(frame);
    if (card.parentNode !== root) root.replaceChildren(card);
    if ([...layer.options].map((o) => o.value).join() !== frame.layers.join()) layer.replaceChildren(...frame.layers.map((l) => el("option", { value: l }, l)));
    layer.value = frame.layer;
    lost.hidden = !frame.lost.length; lost.textContent = frame.lost.join("\n");
    if (fresh) header();
    summary(); arrange();
    if (fresh) { stretch(); edge(); rows(); }
  };
});
