"""What asking the past costs: hindsight's speed and how it grows with workers, and the flight recorder's price.

    python -m tests.benchmarks.past [--quick] [--only hindsight|flight]

Speed is against the bare loop in a process of its own, one torch thread; a worker's start, which imports torch, is told
apart from its work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tracer
from replay import hindsight
from tests.benchmarks.loops import autoencoder
from tests.benchmarks.run import Figure, figure, ratio_of, recording, table, timed

HOUSE = Path(__file__).parents[2]
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(HOUSE)!r})
import torch
torch.set_num_threads(1)
from tests.benchmarks import loops

def train():
    start = time.perf_counter()
    getattr(loops, sys.argv[1])(int(sys.argv[2]))
    print(time.perf_counter() - start)

train()
"""
METRIC = """
def moved(step):
    name = next(n for n, t in step.state.items() if t.dim() > 1)
    return {"moved": (step.next_state[name] - step.state[name]).norm(), "loss": step.loss}
"""


def run(*command: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOUSE)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


class Clock:
    """When each piece was done."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def __call__(self, done: int, of: int) -> None:
        self.marks.append((time.perf_counter(), done))

    def rate(self) -> float:
        """Steps a second between the first piece and the last: without the start of the workers."""
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        return (last - first) / (end - start)


def asked(folder: Path, loop: str, steps: int, every: int) -> list[Figure]:
    """Hindsight with one and with two workers on a run of `steps` steps."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "metric.py").write_text(METRIC)
    bare = steps / statistics.median(float(run(folder / "program.py", loop, steps)) for _ in range(2))
    trace = folder / f"{loop}.trace"
    options = ("--detail", "replay", "--keyframe-every", every)
    run("-m", "apps.cli", "record", "--out", trace, *options, folder / "program.py", loop, steps)
    walls, rates = {}, {}
    for workers in (1, 2):
        clock = Clock()
        metric = folder / "metric.py"
        walls[workers] = timed(lambda w=workers, c=clock, m=metric: ask(trace, m, w, c))
        rates[workers] = clock.rate()
    return [
        figure(f"hindsight, {loop}, {steps} steps: one worker against training", "of bare", [rates[1] / bare], "0.9"),
        figure(f"hindsight, {loop}: two workers over one, while working", "x", [rates[2] / rates[1]], "1.8"),
        figure(f"hindsight, {loop}: two workers over one, all in all", "x", [walls[1] / walls[2]], "1.8"),
        figure(f"hindsight, {loop}: wall time, one worker", "s", [walls[1]]),
    ]


def ask(trace: Path, metric: Path, workers: int, clock: Clock) -> None:
    # One of Dask's workers, too, so that both ways are the same.
    done = hindsight(trace, f"{metric}:moved", workers=workers, progress=clock)
    assert set(done.verdicts) == {"verified"}, done.verdicts


def flight(folder: Path, *, quick: bool) -> list[Figure]:
    """The flight recorder's price on the autoencoder, where nothing happens."""
    steps, repeats = (1000, 3) if quick else (4000, 5)
    options = {"last": 200, "when": "isnan(loss) or loss > 5 * median(loss, 100)"}
    recorded = recording(autoencoder, steps, folder / "flight", **options)
    rows = [figure("autoencoder: flight recorder", "x", ratio_of(autoencoder, steps, repeats, recorded), "1.10")]
    with tracer.open_trace(folder / "flight") as trace:
        assert trace.steps == steps
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute instead of several")
    parser.add_argument("--only", choices=["hindsight", "flight"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only != "flight":
            rows += asked(folder, "autoencoder", 3000 if options.quick else 12_000, 500)
        if options.only is None and not options.quick:
            rows += asked(folder, "convnet", 200, 25)
        if options.only != "hindsight":
            rows += flight(folder, quick=options.quick)
    print(table(rows))


if __name__ == "__main__":
    main()
