// The line to the server: a page that hears nothing says so, and comes back by itself when the server does.
// The server proves that it knows this page's token before the page brings it anything: another program may have its port.
const SILENCE = 4000, RETRY = 1000, LIMIT = 3000;

function watchLine(changed) {
  const s = { heard: performance.now(), lost: false, proof: null, probing: false, answered: 0 };
  const hear = (proof) => {
    s.heard = performance.now(); s.answered = 0;
    if (proof) s.proof = proof;
    if (s.lost) { s.lost = false; changed(false); }
  };
  const lose = () => { if (!s.lost) { s.lost = true; changed(true); } };
  const hex = (bytes) => [...new Uint8Array(bytes)].map((b) => b.toString(16).padStart(2, "0")).join("");
  async function proven() {
    const nonce = hex(crypto.getRandomValues(new Uint8Array(16)));
    const stop = new AbortController(), timer = setTimeout(() => stop.abort(), LIMIT);
    try {
      const answer = await fetch(`${location.pathname.replace(/\/$/, "")}/alive?nonce=${nonce}`, { credentials: "omit", cache: "no-store", signal: stop.signal });
      const mac = await crypto.subtle.importKey("raw", new TextEncoder().encode(s.proof), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
      return answer.ok && (await answer.text()) === hex(await crypto.subtle.sign("HMAC", mac, new TextEncoder().encode(nonce)));
    } catch { return false; } finally { clearTimeout(timer); }
  }
  async function check() {
    if (performance.now() - s.heard > SILENCE) lose();
    if (!s.lost || s.probing || !s.proof) return;
    s.probing = true;
    const there = await proven();
    s.probing = false;
    // A server that answers, and says nothing to this page, has forgotten it: it was started anew, or this machine slept.
    s.answered = there ? s.answered + 1 : 0;
    if (s.lost && s.answered > (s.closed ? 0 : 3)) location.reload();
  }
  const timer = setInterval(check, RETRY);
  for (const known of (window.Bokeh ? Bokeh.documents : [])) known.on_event("connection_lost", () => { s.closed = true; lose(); });
  return { hear, stop: () => clearInterval(timer) };
}
