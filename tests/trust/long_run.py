"""A long run, really recorded: `python -m tests.trust.long_run [STEPS] [FOLDER]`, a million steps of a tiny model by default.

Prints now and then rate, memory, files and tails that wait, and at the end how long the trace takes to open and to be asked.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

import tracer
from tests.trust.soak import resident


def size_of(path: Path) -> tuple[int, int]:
    """How many files a folder has, and how many bytes."""
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    return len(sizes), sum(sizes)


def record(path: Path, steps: int, every: int) -> None:
    """Record the run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data = torch.randn(64, 2)
    began = time.perf_counter(), time.process_time()
    with tracer.record(path, detail="replay", weights=False):
        for k in range(steps):
            optimizer.zero_grad()
            model(data[k % 64 : k % 64 + 1]).square().mean().backward()
            optimizer.step()
            if k % every == every - 1:
                wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
                waiting = len(os.listdir(path / "tail"))
                print(f"{k + 1} steps, {wall:.0f} s, {cpu:.0f} s of CPU, {resident() >> 20} MB, {waiting} tails")
        ending = time.perf_counter()
    count, size = size_of(path)
    print(f"the end took {time.perf_counter() - ending:.1f} s; {count} files, {size / steps:.0f} bytes a step")


def ask(path: Path, steps: int) -> None:
    """Open the trace, and ask it."""
    start = time.perf_counter()
    with tracer.open_trace(path) as trace:
        opened = time.perf_counter()
        assert trace.sql("select count(*), count(distinct step) from steps").fetchall() == [(steps, steps)]
        counted = time.perf_counter()
        assert trace.record(steps // 2)["step"] == steps // 2
        read = time.perf_counter()
        print(f"open {opened - start:.3f} s, count {counted - opened:.3f} s, a record {read - counted:.3f} s")
        assert trace.damage() == []


def main(steps: str = "1000000", folder: str | None = None) -> None:
    """Record, then ask twice."""
    root = Path(folder or tempfile.mkdtemp())
    record(root / "t", int(steps), max(1, int(steps) // 40))
    ask(root / "t", int(steps))
    ask(root / "t", int(steps))
    shutil.rmtree(root / "t")


if __name__ == "__main__":
    main(*sys.argv[1:])
