"""What a live run costs those who do not pause it: `python -m tests.benchmarks.control_idle [--blocks N]`.

One recording (--detail metrics, 784-64-784, one thread) whose blocks of 50 steps take turns: without gate, channel and
status.json ("bare"), with them ("idle"), with them and a client that is connected and silent ("attached"). Printed is
the wall and the CPU time of a step in the median block of each kind, their ratios to the bare one, and the cost of the
open gate alone. On a machine that does other things the quartiles show the noise; the CPU time has less of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import tracer
from tests.benchmarks.loops import autoencoder
from tracer.control import Control
from tracer.gate import Gate

BLOCK = 50
KINDS = ("bare", "idle", "attached")


def gate_ns(passes: int = 1_000_000) -> float:
    gate = Gate()
    times = []
    for passing in (gate.passing, _nothing):
        started = time.perf_counter()
        for step in range(passes):
            passing(step)
        times.append(time.perf_counter() - started)
    return (times[0] - times[1]) / passes * 1e9


def _nothing(step: int) -> float:
    return 0.0


class Turns:
    """Called after each step: at the end of a block, notes its time and makes ready the next kind."""

    def __init__(self, path: Path, recorder: tracer.Recorder) -> None:
        self.path, self.recorder = path, recorder
        self.times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.work: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.count = 0
        self.client: Control | None = None
        self.started, self.worked = time.perf_counter(), time.thread_time()

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count % BLOCK:
            return
        block = self.count // BLOCK
        kind = KINDS[(block - 1) % 3]
        self.times[kind].append((time.perf_counter() - self.started) / BLOCK)
        self.work[kind].append((time.thread_time() - self.worked) / BLOCK)
        self.prepare(KINDS[block % 3])
        self.started, self.worked = time.perf_counter(), time.thread_time()

    def prepare(self, kind: str) -> None:
        steps = self.recorder._steps
        assert steps is not None
        steps.live = None if kind == "bare" else self.recorder.live
        if kind == "attached":
            self.client = Control(self.path)
            self.client.ping()
        elif self.client is not None:
            self.client.close()
            self.client = None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--blocks", type=int, default=90)
    blocks = options.parse_args().blocks
    torch.set_num_threads(1)
    print(f"gate      {gate_ns():.0f} ns a step")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        with tracer.record(path, detail="metrics") as recorder:
            turns = Turns(path, recorder)
            autoencoder((blocks // 3 * 3 + 3) * BLOCK, turns)
    for what, found in (("wall", turns.times), ("CPU", turns.work)):
        bare = statistics.median(found["bare"][1:])
        for kind in KINDS:
            low, middle, high = statistics.quantiles(found[kind][1:], n=4)
            spread = f"{low * 1e3:.3f} to {high * 1e3:.3f}"
            print(f"{kind:<9} {what:<4} {middle * 1e3:.3f} ms a step ({spread}), ratio {middle / bare:.4f}")


if __name__ == "__main__":
    main()
