"""`make bench`: what Rewind costs and how fast it answers, beside its peers, in one run; a table in Markdown, and JSON.

    python -m tests.benchmarks.run [--quick] [--only PART] [--out FOLDER]

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
from tests.benchmarks.loops import After, augmented, autoencoder, convnet, gpt, loader, resnet
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
        rows += one_cost(f"autoencoder: {name}", autoencoder, (steps, repeats), folder / "ae", target, **options)
    for name, peer in PEERS.items():
        run = against(peer, autoencoder, steps // 4, folder / "peer")
        rows.append(figure(f"autoencoder: {name}", "x", ratio_of(autoencoder, steps // 4, min(repeats, 3), run)))
    name = "autoencoder by a DataLoader: Rewind, detail replay"
    rows += one_cost(name, loader, (steps, repeats), folder / "loader", "1.05", detail="replay")
    return rows


def slow_costs(folder: Path, *, quick: bool) -> list[Figure]:
    """The same for loops whose step takes 40 ms and more."""
    steps, many = (20, 60) if quick else (200, 180)
    rows = []
    for name, loop, count, target, options in (
        ("convnet, 1.6 M parameters", convnet, steps, "1.02", {}),
        ("ResNet-18, 11 M parameters", resnet, steps, "1.01", {}),
        ("GPT, 4 layers, d=256", gpt, steps, "1.01", {}),
        ("augmented images, stored whole", augmented, many, "", {"weights": False, "batch_bytes": 1 << 50}),
        ("augmented images, how they were made", augmented, many, "", {"weights": False, "batch_bytes": 0}),
    ):
        options = {"detail": "replay", **options}
        rows += one_cost(f"{name}: Rewind, detail replay", loop, (count, 3), folder / "slow", target, **options)
    return rows


def one_cost(
    name: str, loop: Loop, size: tuple[int, int], path: Path, target: str, **options: Any
) -> tuple[Figure, Figure]:
    """The ratio of a recorded loop to the bare one, `size` (steps, repeats), and the bytes that a step takes, keyframes and all."""
    steps, repeats = size
    ratios = ratio_of(loop, steps, repeats, recording(loop, steps, path, **options))
    stored = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return figure(name, "x", ratios, target), figure(f"{name}, bytes a step", "KB", [stored / steps / 1000])


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


PARTS = {"costs": costs, "slow": slow_costs, "growth": growth, "replay": replaying}


def main() -> None:
    """Measure, print the table, keep both forms in the folder asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes instead of a quarter of an hour")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", choices=sorted(PARTS), help="one part of it")
    options = parser.parse_args()
    parts = PARTS.values() if options.only is None else [PARTS[options.only]]
    torch.set_num_threads(1)
    machine = (
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[Figure] = []
        for part in parts:
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
