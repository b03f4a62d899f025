"""How fast the app scrubs: one step with all that is seen repainted, a burst of keys, the first picture, ten million
points, and what a page costs in memory.

    python -m tests.benchmarks.app_scrub [--quick] [--only scrub,long,points,memory,hour] [--demo TRACE] [--long TRACE]

Without a trace the demo is recorded (some 30 s) and a synthetic one made: 100,000 steps with 512 features, of which
every 50th and a stretch of 600 have captures and weights (some 45 s). Times are taken in the page, from the key to the
frame after the paint; the next key comes as soon as that is there, so the machine never rests.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.browser import chromium
from tests.tracer.synthetic import make_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

TABS = ("batch", "features", "forces", "matrices", "trajectories", "metrics")
ALL_TABS = ("overview", *TABS, "replay", "sql")
PARTS = ("scrub", "long", "points", "memory", "hour")
P50, P95, FIRST, LAG, ZOOM, SESSION = 70, 120, 2.5, 150, 150, 10
STEPS, DENSE, POINTS = 100_000, range(50_000, 50_600), 10_000_000

Row = tuple[str, str, str]

SCRUB = """async (n) => {
  const times = [];
  for (let i = 0; i < n; i++) {
    window.rewindTimes = [];
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    while (!window.rewindTimes.length) await new Promise((go) => setTimeout(go, 2));
    times.push(window.rewindTimes[0]);
  }
  return times;
}"""
# Every component is in a shadow root of its own: `find` looks into them all.
BURST = """(until) => new Promise((done) => {
  const find = (root, wanted) => {
    for (const node of root.querySelectorAll("*")) {
      const found = wanted(node) ? node : node.shadowRoot && find(node.shadowRoot, wanted);
      if (found) return found;
    }
  };
  const page = find(document, (node) => node.dataset.shown);
  let presses = 0;
  const timer = setInterval(() => {
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    if (++presses < 60) return;
    clearInterval(timer);
    const last = performance.now();
    const wait = () => page.dataset.shown === until ? done(performance.now() - last) : setTimeout(wait, 2);
    wait();
  }, 1000 / 30);
})"""
# A chart is zoomed as its tools do it; done when all that is drawn has been drawn anew from finer data.
ZOOMS = """async (spans) => {
  const plots = [];
  const look = (view) => {
    if (view.model.type === "Figure") plots.push(view);
    for (const child of view.child_views || []) look(child);
  };
  for (const root of Bokeh.index.roots) look(root);
  const finer = (plot) => new Promise((go) => {
    const { change } = plot.model.renderers[0].data_source.properties.data;
    const once = () => { change.disconnect(once); go(); };
    change.connect(once);
  });
  const times = [];
  for (const [start, end] of spans) {
    const fresh = Promise.all(plots.map(finer)), started = performance.now();
    plots[0].model.x_range.setv({ start, end });
    plots[0].trigger_ranges_update_event();
    await fresh;
    await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
    times.push(performance.now() - started);
  }
  return times;
}"""
# The app with a run whose scalars are POINTS long: only where the numbers come from is another than usual.
SERVER = """
import sys
import numpy as np
from apps.app import serve, show
from apps.recorded import Recorded
n = {points}
steps = np.arange(n, dtype=np.float64)
noise = np.random.default_rng(0).standard_normal(n)
scalars = dict(step=steps, loss=1 / (1 + steps / 1e5) + 0.01 * noise, lr=np.full(n, 1e-3), grad_norm=np.exp(0.3 * noise))
Recorded.scalars = property(lambda self: scalars)
Recorded.last = property(lambda self: n - 1)
show(serve([sys.argv[1]]), browser=False)
"""


def scrubbing(trace: str, name: str, presses: int, first_step: int) -> list[Row]:
    """First picture, a scrub step on every tab, and the end of a burst."""
    rows = []
    with chromium.app(trace) as url, chromium.browser() as browser:
        chromium.Page(browser, url).page.close()  # the first page of a server reads its scripts
        started = time.perf_counter()
        page = chromium.Page(browser, url, f"step={first_step}&feature=9")
        rows.append((f"{name}: first useful picture", f"{FIRST} s", f"{time.perf_counter() - started:.2f} s"))
        for tab in TABS:
            go(page, tab, first_step)
            page.page.wait_for_timeout(2000)
            page.page.evaluate(SCRUB, 3)
            p50, p95 = np.percentile(page.page.evaluate(SCRUB, presses), [50, 95])
            rows.append((f"{name}: scrub step, {tab}: p50 / p95", f"{P50} / {P95} ms", f"{p50:.0f} / {p95:.0f} ms"))
        lags = [burst(page, first_step, tab) for tab in ("batch", "forces")]
        rows.append((f"{name}: lag after 60 keys at 30 Hz", f"{LAG} ms", " / ".join(f"{x:.0f}" for x in lags) + " ms"))
    return rows


def go(page: chromium.Page, tab: str, step: int) -> None:
    """Be on a tab at a step."""
    page.tab(tab)
    page.page.get_by_label("step number").fill(str(step))
    page.page.get_by_label("step number").press("Enter")
    page.page.locator("[role=slider]").focus()
    page.shown(step)


def burst(page: chromium.Page, step: int, tab: str) -> float:
    """Milliseconds from the last of 60 key presses, 33 ms apart, until its step is painted."""
    go(page, tab, step)
    page.page.wait_for_timeout(1500)
    return page.page.evaluate(BURST, str(step + 60))


def points(trace: str) -> list[Row]:
    """Zooming and panning charts of ten million points each."""
    command = [sys.executable, "-c", SERVER.format(points=POINTS), trace]
    with served(command) as (url, _), chromium.browser() as browser:
        page = chromium.Page(browser, url, "tab=metrics")
        page.page.get_by_text("smoothing").first.wait_for()
        page.page.wait_for_timeout(3000)
        random = np.random.default_rng(1)
        widths = np.geomspace(POINTS * 0.9, 3000, 30)
        spans = [(float(a), float(a + w)) for w in widths for a in [random.uniform(0, POINTS - w)]]
        p50, p95 = np.percentile(page.page.evaluate(ZOOMS, spans), [50, 95])
    name = "3 charts of 10 million points: pan or zoom, all finer: p50 / p95"
    return [(name, f"{ZOOM} ms", f"{p50:.0f} / {p95:.0f} ms")]


def memory(trace: str, presses: int, pages: int = 3, rounds: int = 2) -> list[Row]:
    """What a page holds on the server after much scrubbing, and what is left when it is closed, round after round."""
    command = [sys.executable, "-m", "apps.cli", "app", trace]
    rows, scrubs = [], presses * len(ALL_TABS)
    with served(command) as (url, process), chromium.browser() as browser:
        for page in [chromium.Page(browser, url, "step=20") for _ in range(pages)]:
            wander(page, presses)  # what all pages share is there from now on, and the allocator has what pages need
        close_all(browser, process)
        before = resident(process.pid)
        for number in range(1, rounds + 1):
            opened = [chromium.Page(browser, url, "step=20") for _ in range(pages)]
            for page in opened:
                wander(page, presses)
            each = (resident(process.pid) - before) / pages
            close_all(browser, process)
            left = (resident(process.pid) - before) / (pages * number)
            what = f"memory of a page after {scrubs} steps on all tabs, round {number} of {pages} pages"
            rows += [
                (what, f"{SESSION} MB", f"{each:.1f} MB"),
                (f"of each page so far still held after all were closed, round {number}", "0 MB", f"{left:.1f} MB"),
            ]
    return rows


def hour(trace: str, minutes: float) -> list[Row]:
    """What one page alone holds as it is scrubbed for long, without a rest, and once it has stood still; and when closed."""
    command = [sys.executable, "-m", "apps.cli", "app", trace]
    with served(command) as (url, process), chromium.browser() as browser:
        page = chromium.Page(browser, url, "step=20")
        page.page.set_default_timeout(180_000)
        wander(page, 30)
        close_all(browser, process)
        before = resident(process.pid)
        page = chromium.Page(browser, url, "step=20")
        page.page.set_default_timeout(180_000)
        began, steps, held = time.monotonic(), 0, []
        while time.monotonic() - began < 60 * minutes:
            wander(page, 100)
            steps += 100 * len(ALL_TABS)
            page.page.wait_for_timeout(25_000)  # what is done aside is closed when it has rested
            held.append(resident(process.pid) - before)
            print(f"  {steps} steps, {time.monotonic() - began:.0f} s: {held[-1]:.1f} MB", file=sys.stderr, flush=True)
        close_all(browser, process)
        left = resident(process.pid) - before
    spread = f"{held[0]:.1f} after {100 * len(ALL_TABS)}, {max(held):.1f} at most, {held[-1]:.1f} MB at the end"
    name = f"memory of one page alone over {steps} steps on all tabs"
    return [(name, f"{SESSION} MB", spread), ("of it kept after it was closed", "0 MB", f"{left:.1f} MB")]


def wander(page: chromium.Page, presses: int) -> None:
    """Scrub on every tab."""
    for tab in ALL_TABS:
        go(page, tab, 20)
        page.page.evaluate(SCRUB, presses)


def close_all(browser, process: subprocess.Popen) -> None:
    """Close all pages and wait until the server has let go of them (15 s after the last word, looked for every 5 s)."""
    for context in browser.contexts:
        for page in context.pages:
            page.close()
    time.sleep(25)
    assert process.poll() is None


def resident(pid: int) -> float:
    """Megabytes that a process has to itself: what it wrote. Pages of files, as torch's libraries, are counted to whoever is the
    last to map them: their 340 MB came and went with other processes."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(r.split()[1]) for r in rows if r.startswith("Private_Dirty")) / 1000


@contextmanager
def served(command: list[str]) -> Iterator[tuple[str, subprocess.Popen]]:
    """An app that prints its address."""
    with subprocess.Popen(command, env=chromium.environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1], process
        finally:
            process.terminate()


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--demo")
    parser.add_argument("--long")
    options = parser.parse_args(arguments)
    presses, parts = 30 if options.quick else 100, options.only.split(",")
    with tempfile.TemporaryDirectory() as home:
        demo, long = options.demo or f"{home}/demo", options.long or f"{home}/long"
        if not options.demo and parts != ["long"]:
            script = chromium.HOUSE / "apps" / "demo_train.py"
            chromium.rewind("record", "--detail", "full", "--out", demo, script, "--steps", 150, cwd=Path(home))
        if not options.long and "long" in parts:
            make_trace(long, STEPS, 512, 64, every=50, dense=DENSE, roll=5000, remember=False)
        measured = {
            "scrub": lambda: scrubbing(demo, "demo", presses, 20),
            "long": lambda: scrubbing(long, "100,000 steps, 512 features", presses, DENSE.start),
            "points": lambda: points(demo),
            "memory": lambda: memory(demo, presses),
            "hour": lambda: hour(demo, 2 if options.quick else 10),
        }
        for part in PARTS:
            for what, target, found in measured[part]() if part in parts else []:
                print(f"| app, {what} | at most {target} | {found} |", flush=True)


if __name__ == "__main__":
    main()
