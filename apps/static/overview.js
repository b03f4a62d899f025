// The first look at a run: what stands out, what one asks, what was recorded. A click goes to where it shows.
const WAYS = [["← →", "a step back or forth, with Shift 100"], ["Space", "play"], ["0 … 8", "the tabs"], ["?", "all keys"]];
export const render = surface((root, send) => {
  let last = null;
  const found = el("section", { class: "card" }), asked = el("section", { class: "card" }), facts = el("section", { class: "card" });
  const ways = el("section", { class: "card" }, el("h2", {}, "Find your way"), el("p", { class: "soft" }, "Every step of the run is here: drag along the track above, and each tab shows what was at that step. Or by keys:"),
    el("dl", {}, WAYS.flatMap(([key, what]) => [el("dt", { class: "mono" }, key), el("dd", {}, what)])));
  const page = el("div", { class: "page" }, el("div", { class: "column" }, found, asked), el("div", { class: "column" }, facts, ways));
  const title = (tab) => tab.charAt(0).toUpperCase() + tab.slice(1);
  const words = (text) => text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
  const go = (of, index, what = "go") => () => send({ do: what, of, index });

  function small(caption, { data, shape }) {
    const [h, w, depth] = shape, cosines = data instanceof Float32Array, canvas = el("canvas", { role: "img", "aria-label": caption }), side = cosines ? 92 : 56;
    let image;
    if (cosines) image = picture(data, w, h, -1, 1, "diverging");
    else if (depth) {
      image = document.createElement("canvas"); image.width = w; image.height = h;
      const pixels = new ImageData(w, h);
      for (let i = 0; i < w * h; i++) { for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = data[depth * i + c]; pixels.data[4 * i + 3] = 255; }
      image.getContext("2d").putImageData(pixels, 0, 0);
    } else image = picture(data, w, h, 0, 255, "gray");
    const c = sized(canvas, side, Math.round(side * Math.min(2, h / w)));
    c.imageSmoothingEnabled = false; c.drawImage(image, 0, 0, side, Math.round(side * Math.min(2, h / w)));
    return el("figure", {}, canvas, el("figcaption", { class: "soft num" }, caption));
  }
  function whole(parts) {
    const all = parts.reduce((sum, [, count]) => sum + count, 0) || 1, there = parts.filter(([, count]) => count);
    return el("div", { class: "whole" }, el("div", { class: "bar" }, there.map(([, count, colour]) => el("span", { style: `width:${100 * count / all}%;background:var(--rw-${colour})` }))),
      el("div", { class: "row num", style: "gap:4px 14px;font-size:12px" }, there.map(([word, count, colour]) => el("span", {}, el("i", { style: `background:var(--rw-${colour})` }), `${count} ${word}`))));
  }
  function answer(one, i) {
    const shown = one.pictures.length ? el("div", { class: "pictures" }, one.pictures.map(([caption, name]) => small(caption, last.arrays[name]))) : null;
    return el("article", {}, el("div", { class: "said" }, el("h3", {}, one.question), el("p", {}, words(one.answer)), one.parts.length ? whole(one.parts) : null),
      shown, el("button", { "aria-label": `${one.question} ${title(one.tab)}`, onclick: go("answer", i) }, title(one.tab), " ›"));
  }
  function finding(one, i) {
    const step = one.step === null || one.step === undefined ? null : el("button", { onclick: go("finding", i) }, `Step ${one.step} ›`);
    return el("article", {}, el("div", { class: "said" }, el("h3", {}, el("span", { class: "chip contender" }, one.kind)), one.words.map((line) => el("p", {}, words(line))), el("p", { class: "soft" }, words(one.advice))),
      step, el("button", { "aria-label": `${one.kind}: the numbers`, onclick: go("finding", i, "sql") }, "The numbers ›"));
  }
  function stand() {
    if (last.failed) return [el("p", { class: "soft" }, last.failed)];
    if (last.live) return [el("p", { class: "soft" }, "The run goes on: it is looked into when it is over.")];
    if (last.findings === null) return [el("p", { class: "soft busy" }, "Looking through the run: NaN, dead features, frozen weights, sorted data, gaps …")];
    if (!last.findings.length) return [el("p", {}, el("span", { class: "chip verified" }, "nothing"), el("span", { class: "soft" }, " No NaN, nothing dead, frozen, sorted, missing or growing out of bounds."))];
    return last.findings.map(finding);
  }
  function draw() {
    found.replaceChildren(el("h2", {}, "What stands out"), ...stand());
    asked.replaceChildren(el("h2", {}, "What one asks"), ...last.answers.map(answer));
    asked.hidden = !last.answers.length;
    facts.replaceChildren(el("h2", {}, "This run"), el("dl", {}, last.facts.flatMap(([name, words]) => [el("dt", {}, name), el("dd", {}, words)])));
    if (page.parentNode !== root) root.replaceChildren(page);
  }
  return (frame) => {
    if (frame.kind === "theme") { if (last) draw(); return; }
    last = frame; draw();
  };
});
