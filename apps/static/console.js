// SQL: the schema at hand, examples, a sortable result; a click on a row with a step goes there.
export const render = surface((root, send) => {
  const text = el("textarea", { "aria-label": "SQL", spellcheck: false, class: "mono", rows: 6, style: "width:100%;resize:vertical" });
  const run = el("button", { class: "primary", onclick: ask }, "Run (Ctrl+Enter)");
  const example = el("select", { "aria-label": "examples", onchange: () => { if (example.value) { text.value = s.examples[example.value]; ask(); } } });
  const note = el("span", { class: "soft", role: "status", "aria-live": "polite" });
  const schema = el("div", { class: "card", style: "max-height:560px;overflow:auto" });
  const result = el("div", { style: "overflow:auto;max-height:420px;margin-top:10px" });
  const s = { examples: {}, rows: [], columns: [], by: null, down: false, given: "" };
  root.append(el("div", { style: "display:grid;grid-template-columns:minmax(0,1fr) 260px;gap:12px;align-items:start" },
    el("div", { class: "card" }, text, el("div", { class: "row", style: "margin-top:8px" }, run, el("label", {}, "ask", example), note), result), schema));
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); } });
  function ask() { note.textContent = "running …"; send({ do: "sql", query: text.value }); }
  // All that a number has to say, within reason: steps and times are read off here, not only looked at.
  function cell(v) {
    if (v === null) return el("span", { class: "soft" }, "NULL");
    if (typeof v === "object") return JSON.stringify(v);
    if (typeof v !== "number") return { Infinity: "∞", "-Infinity": "−∞" }[v] || String(v);
    const size = Math.abs(v);
    if (Number.isSafeInteger(v)) return String(v);
    if (size >= 1e15 || size < 1e-4) return v.toPrecision(5).replace(/\.?0+(e|$)/, "$1").replace("e+", "e");
    return String(size >= 1e6 ? Number(v.toFixed(3)) : Number(v.toPrecision(6)));
  }
  const order = (v) => (v === null ? 2 : v === "NaN" ? 1 : 0);
  function draw() {
    const at = s.columns.indexOf(s.by), way = s.down ? -1 : 1;
    const rows = at < 0 ? s.rows : [...s.rows].sort((a, b) => order(a[at]) - order(b[at]) || (a[at] === b[at] ? 0 : a[at] < b[at] ? -way : way));
    const step = s.columns.indexOf("step"), feature = s.columns.indexOf("feature");
    const figures = new Set(s.columns.map((_, i) => i).filter((i) => s.rows.some((row) => typeof row[i] === "number")));
    const head = el("tr", {}, s.columns.map((c) => el("th", { scope: "col", class: figures.has(s.columns.indexOf(c)) ? "right" : "", "aria-sort": s.by === c ? (s.down ? "descending" : "ascending") : "none" }, el("button", { onclick: () => { s.down = s.by === c ? !s.down : false; s.by = c; draw(); } }, c + (s.by === c ? (s.down ? " ↓" : " ↑") : "")))));
    const go = (row) => send({ do: "row", step: step < 0 ? null : row[step], feature: feature < 0 ? null : row[feature] });
    result.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, rows.map((row) => el("tr", step >= 0 || feature >= 0 ? { class: "link", tabIndex: 0, onclick: () => go(row), onkeydown: (e) => { if (e.key === "Enter") go(row); } } : {},
      row.map((v, i) => el("td", { class: `num ${figures.has(i) ? "right" : ""}`, title: typeof v === "number" ? String(v) : null }, cell(v))))))));
  }
  return (frame) => {
    if (frame.kind === "theme") return;
    if (frame.schema) {
      schema.replaceChildren(el("h2", {}, "Views"), ...Object.entries(frame.schema).map(([view, columns]) => el("details", { open: view === "steps" }, el("summary", { class: "mono" }, view),
        el("dl", { class: "mono", style: "font-size:12px;padding-left:12px" }, Object.entries(columns).flatMap(([c, t]) => [el("dt", {}, c), el("dd", { class: "soft" }, t.toLowerCase())])))));
    }
    if (frame.examples) {
      s.examples = frame.examples;
      example.replaceChildren(el("option", { value: "" }, "an example …"), ...Object.keys(frame.examples).map((k) => el("option", { value: k }, k)));
    }
    if (frame.query) {
      // What somebody has begun to type stays; what the page itself has put there goes.
      if (!frame.unasked || text.value === s.given) text.value = frame.query;
      s.given = frame.query; note.textContent = "running …";
    }
    if (frame.problem) { note.textContent = ""; result.replaceChildren(el("div", { class: "problem" }, frame.problem)); return; }
    if (frame.columns) {
      s.columns = frame.columns; s.rows = frame.rows;
      if (!s.columns.includes(s.by)) s.by = null;
      note.textContent = frame.note; draw();
    }
  };
});
