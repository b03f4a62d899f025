// Re-execute a step and say how it went.
export const render = surface((root, send) => {
  let busy = false;
  const button = (text, action, kind = "") => el("button", { class: kind, onclick: () => { if (!busy) send({ do: "replay", action }); } }, text);
  const here = button("Re-execute this step", "here", "primary");
  const buttons = [here, button("‹ back by re-execution", "back"), button("forward by re-execution ›", "forward")];
  const anyway = el("input", { type: "checkbox", style: "min-height:0", onchange: () => send({ do: "anyway", value: anyway.checked }) });
  const said = el("div", { role: "status", "aria-live": "polite" });
  const past = el("div"), proof = el("p", { style: "margin:0 0 10px" });
  root.append(el("div", { style: "display:grid;grid-template-columns:minmax(0,1fr) 320px;gap:12px;align-items:start" },
    el("div", { class: "card" }, el("div", { class: "row" }, buttons, el("label", {}, anyway, "even where this machine differs")),
      el("p", { class: "soft", style: "margin:8px 0" }, "This runs the recorded program, in a process of its own; what it writes goes to a scratch folder. Every bit of the step is compared with what was recorded."), said),
    el("div", { class: "card" }, el("h2", {}, "Verdicts kept in the trace"), proof, el("h2", {}, "Given on this page"), past)));
  // What all verdicts together say; the way to the first that diverged.
  const proven = ({ words, whole, first_diverged: lost }) => [lost === null || lost === undefined ? (whole ? el("span", { class: "chip verified" }, "proven") : null) : el("button", { style: "min-height:22px;padding:0 8px", onclick: () => send({ do: "go", step: lost }) }, `step ${lost}`),
    ` ${words || ""}`].filter(Boolean);
  const table = (title, rows) => rows.length ? [el("h2", { style: "margin-top:14px" }, title), el("dl", { class: "num" }, rows.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]))] : [];
  const cells = (tag, row) => row.map((x, i) => el(tag, { style: `padding:2px 8px 2px 0;text-align:${i < 2 ? "left" : "right"};white-space:nowrap` }, x));
  const activity = ({ columns, rows }) => rows.length ? [el("h2", { style: "margin-top:14px" }, "Activations: what each module gave"), el("div", { style: "overflow:auto;max-height:420px" },
    el("table", { class: "num", "data-table": "activations" }, el("thead", {}, el("tr", {}, cells("th", columns))), el("tbody", {}, rows.map((row) => el("tr", {}, cells("td", row))))))] : [];
  // Bars of the worst samples; whose image that is says the tab Batch.
  const worst = (each) => each.flatMap(({ name, rows }) => [el("h2", { style: "margin-top:14px" }, `Loss of each sample, largest first: ${name}`), el("div", { class: "num", "data-table": "sample-losses" }, rows.map(([i, loss, share]) =>
    el("div", { style: "display:grid;grid-template-columns:90px 90px minmax(0,1fr);gap:8px;align-items:center" }, el("span", {}, `sample ${i}`), el("span", { style: "text-align:right" }, loss), el("span", { style: `height:8px;border-radius:3px;background:var(--rw-accent);width:${100 * share}%` }))))]);
  return (frame) => {
    if (frame.kind === "theme") return;
    busy = !!frame.busy;
    for (const b of buttons) b.disabled = busy || !!frame.impossible;
    here.textContent = frame.step === undefined ? "Re-execute this step" : `Re-execute step ${frame.step}`;
    proof.replaceChildren(...proven(frame.proof || {}));
    const parts = [];
    if (frame.impossible) parts.push(el("div", { class: "empty" }, frame.impossible));
    else if (frame.busy) parts.push(el("div", { class: "soft" }, frame.busy));
    else if (frame.problem) parts.push(el("div", {}, el("span", { class: "chip failed" }, "not replayed"), " ", frame.problem));
    else if (frame.verdict) {
      const v = frame.verdict;
      parts.push(el("div", { class: "row", style: "font-size:15px" }, el("span", { class: `chip ${v.kind}`, "data-verdict": v.kind, style: "font-size:14px" }, v.kind), el("span", {}, `step ${v.step}`), el("span", { class: "soft" }, frame.took)));
      parts.push(el("dl", {}, [["detail", v.detail], ["first difference", v.tensor], ["by up to", v.max_ulp === null ? null : `${v.max_ulp} ULP`], ["likely cause", v.cause], ["not kept", (frame.notes || []).join("; ")]]
        .filter(([, x]) => x).flatMap(([k, x]) => [el("dt", {}, k), el("dd", {}, x)])));
      parts.push(...table("Captured", frame.captures), ...table("Gradients left in the parameters", frame.grads), ...activity(frame.activations), ...worst(frame.sample_losses), ...table("Not kept of what was seen", frame.left_out.map((x) => [x, ""])), ...table("Files held back", frame.held_back));
    }
    said.replaceChildren(...parts);
    past.replaceChildren(...(frame.past || []).map(([step, kind]) => el("div", { class: "row", style: "padding:2px 0" }, el("button", { style: "min-height:22px;padding:0 8px", onclick: () => send({ do: "go", step }) }, `step ${step}`), el("span", { class: `chip ${kind}` }, kind))));
    if (!(frame.past || []).length) past.replaceChildren(el("span", { class: "soft" }, "none yet"));
  };
});
