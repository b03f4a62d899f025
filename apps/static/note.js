// An empty state: words, and a button that would fill it.
export const render = surface((root, send) => (frame) => {
  if (frame.problem) saying(root, frame.problem, frame.action, send); else root.replaceChildren();
});
