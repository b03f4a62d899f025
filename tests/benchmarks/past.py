"""What asking the past costs: hindsight's speed and how it grows with workers, and the flight recorder's price.

    python -m tests.benchmarks.past [--quick] [--only hindsight|flight]

Speed is against the bare loop in a process of its own, one torch thread; what it takes to start is told apart from the
work, and beside two workers stands what the machine gives two bare trainings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import tracer
from replay import hindsight
from tests.benchmarks.loops import autoencoder
from tests.benchmarks.run import Figure, figure, ratio_of, recording, table

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


def bare(program: Path, loop: str, steps: int, processes: int) -> float:
    """Seconds for `steps` steps of plain training, shared equally among independent processes: what the machine gives."""
    with ThreadPoolExecutor(processes) as pool:
        took = pool.map(lambda _: float(run(program, loop, steps // processes)), range(processes))
        return max(took)


def asked(folder: Path, loop: str, steps: int, every: int) -> list[Figure]:
    """Hindsight with one and with two workers on a run of `steps` steps, and what two bare trainings beside each other give."""
    program, metric = folder / "program.py", folder / "metric.py"
    program.write_text(PROGRAM)
    metric.write_text(METRIC)
    trace = folder / f"{loop}.trace"
    options = ("--detail", "replay", "--keyframe-every", every)
    run("-m", "apps.cli", "record", "--out", trace, *options, program, loop, steps)
    # Neighbours in time, so that a machine that slows down slows both sides of a ratio.
    alone, work = bare(program, loop, steps, 1), {1: working(trace, metric, 1)}
    pair, work[2] = bare(program, loop, steps, 2), working(trace, metric, 2)
    speed = {n: wall - start for n, (wall, start) in work.items()}
    name = f"hindsight, {loop}, {steps} steps"
    return [
        figure(f"{name}: one worker against training", "of bare", [alone / speed[1]], "0.9"),
        figure(f"{name}: two workers over one, while working", "x", [speed[1] / speed[2]], "1.8"),
        figure(f"{name}: two workers over one, all in all", "x", [work[1][0] / work[2][0]], "1.8"),
        figure(f"{loop}: two bare trainings of half the steps over one (the machine's limit)", "x", [alone / pair]),
        *(figure(f"{name}: wall time, {n} worker(s)", "s", [work[n][0]]) for n in work),
        *(figure(f"{name}: of which start, {n} worker(s)", "s", [work[n][1]]) for n in work),
    ]


def working(trace: Path, metric: Path, workers: int) -> tuple[float, float]:
    """Seconds for all steps, and for a few: what it takes to start, which any number of steps has to pay."""
    with tracer.open_trace(trace) as opened:
        few = [opened.steps // 4, 3 * opened.steps // 4]
    start = float(run("-m", "tests.benchmarks.past", "--ask", trace, metric, workers, *few))
    return float(run("-m", "tests.benchmarks.past", "--ask", trace, metric, workers)), start


def ask(trace: str, metric: str, workers: str, *steps: str) -> float:
    """Seconds for one question, in a process that has asked nothing before."""
    started = time.perf_counter()
    done = hindsight(trace, f"{metric}:moved", workers=int(workers), steps=[int(k) for k in steps] or None)
    assert set(done.verdicts) == {"verified"}, done.verdicts
    return time.perf_counter() - started


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
    parser.add_argument("--ask", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(ask(*options.ask))
        return
    torch.set_num_threads(1)
    rows: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only != "flight":
            rows += asked(folder, "autoencoder", 4000 if options.quick else 16_000, 500)
        if options.only is None and not options.quick:
            rows += asked(folder, "convnet", 200, 25)
        if options.only != "hindsight":
            rows += flight(folder, quick=options.quick)
    print(table(rows))


if __name__ == "__main__":
    main()
