// A row of controls from a description: {controls: [{name, label, kind, options, value}], words: [[text, class]]}.
export const render = surface((root, send) => {
  const row = el("div", { class: "row", style: "padding:4px 2px 8px;gap:12px;min-height:40px" });
  const words = el("div", { class: "row", style: "gap:14px" });
  root.append(row);
  let shape = "";
  const made = {};
  function control(c) {
    const set = (value) => send({ do: "set", name: c.name, value });
    if (c.kind === "select") {
      const box = el("select", { onchange: () => set(box.value) }, c.options.map(([value, text]) => el("option", { value }, text)));
      box.value = c.value; made[c.name] = (v) => { box.value = v; };
      return el("label", {}, c.label, box);
    }
    if (c.kind === "button") return el("button", { onclick: () => set(true) }, c.label);
    if (c.kind === "fold") {
      const box = el("button", { class: "fold", onclick: () => set(true) });
      (made[c.name] = (v) => { box.textContent = `${v ? "▾" : "▸"} ${c.label}`; box.setAttribute("aria-expanded", v); })(c.value);
      return box;
    }
    if (c.kind === "toggle") {
      const box = el("input", { type: "checkbox", style: "min-height:0", checked: c.value, onchange: () => set(box.checked) });
      made[c.name] = (v) => { box.checked = v; };
      return el("label", {}, box, c.label);
    }
    const box = el("input", { type: c.kind, value: c.value, min: c.min, max: c.max, step: c.step, placeholder: c.hint, style: `width:${{ range: "110px;padding:0", number: "92px" }[c.kind] || "160px"}`, onchange: () => set(box.value) });
    made[c.name] = (v) => { if (root.getRootNode().activeElement !== box) box.value = v; };
    return el("label", {}, c.label, box);
  }
  // As a gradient, which a saved picture has, too.
  const stroke = (c, dash) => (dash === "solid" ? `linear-gradient(to right,${c},${c})` : `repeating-linear-gradient(to right,${c} 0px,${c} 5px,transparent 5px,transparent 8px)`);
  const line = ([name, colour, dash]) => el("span", { class: "row", style: "gap:6px" }, el("span", { style: `width:18px;height:3px;background:${stroke(colour, dash)}` }), name);
  return (frame) => {
    if (frame.kind === "theme") return;
    const fresh = JSON.stringify((frame.controls || []).map(({ value, ...rest }) => rest));
    if (fresh !== shape) { shape = fresh; row.replaceChildren(...(frame.controls || []).map(control), words); }
    else for (const c of frame.controls) if (made[c.name]) made[c.name](c.value);
    if (frame.thin) row.style.cssText = "padding:2px 2px 4px";
    words.replaceChildren(...(frame.legend || []).map(line), ...(frame.words || []).map(([text, kind]) => el("span", { class: kind || "soft" }, text)));
    root.setAttribute("aria-live", "polite");
  };
});
