"""How soon a page shows a step that was just made, and what watching costs the run.

    python -m tests.benchmarks.app_live [--seconds S] [--only latency,cost,crash,opens]

Latency: a run of a step every 0.4 s is followed by a page in a headless Chromium. For each step the time from its end,
as the record has it, to the page's text of the newest step (`head`), and to all that the tab shows of it (`shown`).
Cost: 784-64-784, one thread, --detail replay, as fast as it goes, watched by ten pages of one app without a browser,
all following and redrawing; they are stopped and let go on in turns of 1.5 s, and the steps of both kinds of turns are
counted: the ratio of step times is that of two neighbouring turns, its median has a 95 % interval from the order of them.
The CPU time of a step says the same where others use the machine, too; what the readers' process uses comes on top.
Crash: from SIGKILL of the run to the page's badge, five times.
Opens: the trace of a small run of some 170 steps a second, of which 128 at a time are sealed, is opened 500 times a
second for a minute, or as often as it can be, and each time all its steps must be there, once each.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.browser import chromium
from tests.tracer.live_run import PROGRAM, LiveRun
from tracer import open_trace

READERS, TURN, STEP = 10, 1.5, 0.4
SLOW = f"""
import time, torch
model = torch.nn.Linear(64, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = torch.utils.data.TensorDataset(torch.rand(4000, 1, 8, 8), torch.rand(4000, 8))
for x, y in torch.utils.data.DataLoader(data, batch_size=4):
    time.sleep({STEP})
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x.flatten(1)), y).backward()
    optimizer.step()
"""
FAST = """
import torch
from tests.benchmarks.loops import autoencoder
torch.set_num_threads(1)
autoencoder(1_000_000)
"""
WATCH = """() => {
  const root = (from) => { for (const e of from.querySelectorAll("*")) {
    if (e.dataset && "shown" in e.dataset) return e;
    const inner = e.shadowRoot && root(e.shadowRoot);
    if (inner) return inner; } return null; };
  const at = root(document), seen = window.rewindSeen = { last: {}, shown: {} };
  new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => { for (const name of ["last", "shown"])
    if (!(at.dataset[name] in seen[name])) seen[name][at.dataset[name]] = Date.now() / 1000; }))).observe(at, { attributes: true });
}"""


def latency(seconds: float, tab: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "slow.py").write_text(SLOW)
        with (
            LiveRun(home / "t", script=home / "slow.py") as run,
            chromium.app(home / "t") as url,
            chromium.browser() as b,
        ):
            run.until_status("running")
            page = chromium.Page(b, url, f"tab={tab}")
            page.page.wait_for_timeout(3000)
            page.page.evaluate(WATCH)
            page.page.wait_for_timeout(seconds * 1000)
            seen = page.page.evaluate("() => window.rewindSeen")
        with open_trace(home / "t") as trace:
            ended = dict(trace.sql("select step, time from steps").fetchall())
    for what, name in (("head", "last"), ("shown", "shown")):
        found = sorted((when - ended[int(k)]) * 1000 for k, when in list(seen[name].items())[1:])
        middle, high = statistics.median(found), found[int(0.95 * len(found))]
        print(
            f"{tab:<8} {what:<6} {len(found)} steps: median {middle:.0f}, 95th percentile {high:.0f}, most {found[-1]:.0f} ms"
        )


def cost(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "fast.py").write_text(FAST)
        with LiveRun(home / "t", script=home / "fast.py") as run:
            run.until_status("running")
            command = [sys.executable, "-m", "tests.benchmarks.app_live", "--read", str(home / "t")]
            with subprocess.Popen(command, env=chromium.environment()) as readers:
                time.sleep(8)
                turns = []
                end = time.time() + seconds
                while time.time() < end:
                    for on in (False, True):
                        os.kill(readers.pid, signal.SIGCONT if on else signal.SIGSTOP)
                        time.sleep(0.2)
                        begun, before = time.time(), _cpu(run.process.pid)
                        time.sleep(TURN)
                        turns.append((begun, time.time(), _cpu(run.process.pid) - before))
                used = _cpu(readers.pid)
                os.kill(readers.pid, signal.SIGKILL)
        with open_trace(home / "t") as trace:
            times = [when for (when,) in trace.sql("select time from steps order by step").fetchall()]
    counts = [sum(a <= t < b for t in times) for a, b, _ in turns]
    for what, costs in (
        ("wall time", [(b - a) / count for (a, b, _), count in zip(turns, counts, strict=True)]),
        ("CPU of the training process", [cpu / count for (_, _, cpu), count in zip(turns, counts, strict=True)]),
    ):
        alone, watched = costs[::2], costs[1::2]
        median, low, high = _middle(sorted(b / a for a, b in zip(alone, watched, strict=True)))
        each = f"{1000 * statistics.median(alone):.2f} ms alone, {1000 * statistics.median(watched):.2f} with {READERS} readers"
        print(
            f"a step's {what}: {each}; ratio, median of {len(alone)} pairs: {median:.3f} (95 %: {low:.3f} to {high:.3f})"
        )
    print(f"the readers' process used {used:.1f} s of CPU, {len(times)} steps in all")


def crash(times: int = 5) -> None:
    found = []
    with tempfile.TemporaryDirectory() as folder, chromium.browser() as b:
        home = Path(folder)
        (home / "slow.py").write_text(SLOW)
        for i in range(times):
            path = home / f"t{i}"
            with LiveRun(path, script=home / "slow.py") as run, chromium.app(path) as url:
                run.until_status("running")
                page = chromium.Page(b, url)
                page.page.wait_for_selector("[data-status=live]")
                page.page.wait_for_timeout(2000 + 150 * i)
                run.process.kill()
                killed = time.perf_counter()
                page.page.wait_for_selector("[data-status=crashed]", timeout=30_000)
                found.append(time.perf_counter() - killed)
                page.page.close()
    print(
        f"SIGKILL to the badge `crashed`: median {statistics.median(found):.2f} s, most {max(found):.2f} s of {times}"
    )


def opens(seconds: float = 60.0, rate: float = 500.0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pace = "    optimizer.step()\n    import time; time.sleep(0.005)"
        program = PROGRAM.replace("    optimizer.step()", pace)
        (home / "sealing.py").write_text(f"import tracer.journal as j; j.ROLL_STEPS = 128\n{program}")
        with LiveRun(home / "t", script=home / "sealing.py", epochs=1000, batches=1000) as run:
            run.until_status("running")
            took, last, wrong, sealed, begun = [], 0, 0, set(), time.perf_counter()
            while time.perf_counter() - begun < seconds:
                time.sleep(max(0.0, begun + len(took) / rate - time.perf_counter()))
                started = time.perf_counter()
                with open_trace(home / "t") as trace:
                    runs, last_now = trace.recorded_steps.runs, trace.steps
                    sealed.add(len(trace._chain.sealed))
                    took.append(time.perf_counter() - started)
                wrong += last_now < last or (last_now > 0 and runs != ((0, last_now - 1),))
                last = last_now
    each = sorted(1000 * t for t in took)
    print(
        f"{len(took)} opens in {seconds:.0f} s ({len(took) / seconds:.0f} a second) while {last} steps came and "
        f"{max(sealed) - min(sealed)} segments were sealed: {wrong} with a step torn, twice or missing; "
        f"an open took {statistics.median(each):.2f} ms, 99th percentile {each[int(0.99 * len(each))]:.2f}, most {each[-1]:.1f}"
    )


def _middle(values: list[float]) -> tuple[float, float, float]:
    """The median of sorted values, and what of their order bounds it at 95 %."""
    aside = max(0, int(len(values) / 2 - 0.98 * len(values) ** 0.5))
    return statistics.median(values), values[aside], values[-1 - aside]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read(path: str) -> None:
    """Ten pages of one app, without a browser: what they would send is packed and thrown away."""
    from apps.runs import Runs
    from apps.viewer import Viewer

    runs = Runs([path])
    pages = [Viewer(runs, f"tab={'metrics' if i % 2 else 'batch'}") for i in range(READERS)]
    for page in pages:
        page._shell._ready = True
        page.following.ready()
    while True:
        for page in pages:
            page.following.painted(page.following._pushes)
            page.following.beat()
        time.sleep(0.15)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--only", default="latency,cost")
    options.add_argument("--read")
    chosen = options.parse_args()
    if chosen.read:
        read(chosen.read)
    if "latency" in chosen.only:
        for tab in ("batch", "metrics"):
            latency(chosen.seconds / 2, tab)
    if "cost" in chosen.only:
        cost(chosen.seconds)
    if "crash" in chosen.only:
        crash()
    if "opens" in chosen.only:
        opens()


if __name__ == "__main__":
    main()
