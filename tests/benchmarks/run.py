"""`make bench`: what Rewind costs and how fast it answers, beside its peers, in one run; a table in Markdown, and JSON.

    python -m tests.benchmarks.run [--quick] [--out FOLDER]

Costs are wall-clock ratios to the bare loop, the two in turn, everything counted from entering the recording to the end of its drain;
the median of the repetitions, with minimum and maximum. One torch thread, so that a core is spare.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tracer
from replay import Session
from tests.benchmarks.figures import Figure, figure, table, timed
from tests.benchmarks.growth import growth
from tests.benchmarks.loops import After, autoencoder, convnet, loader
from tests.benchmarks.peers import PEERS

Loop = Callable[..., None]


def ratio_of(loop: Loop, steps: int, repeats: int, recorded: Callable[[], None]) -> list[float]:
    """Wall-clock ratios of `recorded` to the bare loop, in turn."""
    loop(max(5, steps // 20))
    ratios = []
    for _ in range(repeats):
        bare = timed(lambda: loop(steps))
        ratios.append(timed(recorded) / bare)
    return ratios


def recording(loop: Loop, steps: int, path: Path, **options: Any) -> Callable[[], None]:
    """Return the loop recorded at `path`, which is made anew."""

    def run() -> None:
        with tracer.record(path, overwrite=True, **options):
            loop(steps)

    return run


def against(peer: Callable, loop: Loop, steps: int, folder: Path) -> Callable[[], None]:
    """Return the loop with a peer writing into `folder`."""

    def run() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with peer(folder) as after:
            loop(steps, after)

    return run


def costs(folder: Path, *, quick: bool) -> list[Figure]:
    """Overhead of recording and of the peers."""
    steps, repeats = (1000, 3) if quick else (3000, 7)
    rows = []
    for name, options, target in (
        ("Rewind, detail replay", {"detail": "replay"}, "1.05"),
        ("Rewind, weights every step", {"detail": "replay", "weights": True}, "1.15"),
        ("Rewind, detail full", {"detail": "full"}, "1.15"),
        ("Rewind, detail metrics", {"detail": "metrics"}, ""),
    ):
        run = recording(autoencoder, steps, folder / "ae", **options)
        rows.append(figure(f"autoencoder: {name}", "x", ratio_of(autoencoder, steps, repeats, run), target))
        size = sum(f.stat().st_size for f in (folder / "ae").rglob("*") if f.is_file()) / steps
        rows.append(figure(f"autoencoder: {name}, bytes a step", "KB", [size / 1000]))
    for name, peer in PEERS.items():
        run = against(peer, autoencoder, steps // 4, folder / "peer")
        rows.append(figure(f"autoencoder: {name}", "x", ratio_of(autoencoder, steps // 4, min(repeats, 3), run)))
    run = recording(loader, steps, folder / "loader", detail="replay")
    rows.append(
        figure("autoencoder by a DataLoader: Rewind, detail replay", "x", ratio_of(loader, steps, repeats, run), "1.05")
    )
    slow = 20 if quick else 60
    run = recording(convnet, slow, folder / "conv", detail="replay")
    rows.append(
        figure("convnet, 50 ms and more: Rewind, detail replay", "x", ratio_of(convnet, slow, repeats, run), "1.02")
    )
    return rows


def replaying(folder: Path, *, quick: bool) -> list[Figure]:
    """Speed of re-execution, and of a seek with a warm engine."""
    steps = 300 if quick else 1000
    path = folder / "replay"
    with tracer.record(path, overwrite=True, detail="replay", keyframe_every=64):
        autoencoder(steps)
    with Session(path, program=lambda: autoencoder(steps)) as session:
        session.seek(64)
        session.run(16)
        bare = timed(lambda: autoencoder(128)) / 128
        session.seek(64)
        again = timed(lambda: session.run(128)) / 128
        places = np.random.default_rng(0).integers(1, steps, 20)
        seeks = [timed(lambda k=int(k): session.seek(k)) * 1000 for k in places]
    return [
        figure("replay: speed of training while stepping", "of bare", [bare / again], "0.9"),
        figure("replay: seek to any step, keyframe every 64", "ms", seeks, "150"),
    ]


def main() -> None:
    """Measure, print the table, keep both forms in the folder asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes instead of a quarter of an hour")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = (
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[Figure] = []
        for part in (costs, growth, replaying):
            rows += part(folder, quick=options.quick)
            print(table(rows[-1:]), file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.md").write_text(f"{machine}\n\n{table(rows)}\n")
    text = json.dumps({"machine": machine, "figures": [asdict(r) for r in rows]}, indent=1)
    (options.out / "bench.json").write_text(text)
    print(f"{machine}\n\n{table(rows)}")


__all__ = ["After", "main"]

if __name__ == "__main__":
    main()
