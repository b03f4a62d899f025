"""The ranks of a distributed run: every process that torchrun starts records, each into a trace of its own, side by side. # B9

OUT/rank-0, OUT/rank-1 ... Without an OUT they agree on the first free one by a file `launch` in it, which names their torchrun.
Room: tracer. May touch: the folder that the traces of one run share.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from typing import TYPE_CHECKING, Any

from tracer import process

if TYPE_CHECKING:
    from pathlib import Path

    from tracer.manifest import Manifest


def here() -> tuple[int, int] | None:
    """Which rank this process is, and of how many; None where it is alone."""
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, count) if count > 1 else None


def facts() -> dict[str, Any]:
    """The same, as the environment of a trace says it."""
    found = here()
    return {} if found is None else {"rank": found[0], "world_size": found[1]}


def of(manifest: Manifest) -> tuple[int, int] | None:
    """Which rank recorded a trace, and of how many; None where it was alone."""
    rank, count = manifest.environment.get("rank"), manifest.environment.get("world_size")
    return (rank, count) if isinstance(rank, int) and isinstance(count, int) else None


def place(out: Path) -> Path:
    """Where this process records that is told to record into `out`."""
    found = here()
    return out if found is None else out / f"rank-{found[0]}"


def beside(trace: Path, rank: int) -> Path:
    """Where another rank of the same run recorded."""
    return trace.parent / f"rank-{rank}"


def shared_path(folder: Path, name: str) -> Path:
    """Return the first of folder/name-1, name-2 ... that does not exist, the same to all ranks of this launch."""
    parent = os.getppid()
    launch = f"{parent} {process.started(parent)} {os.environ.get('TORCHELASTIC_RUN_ID', '')}\n"
    mine = folder / f".{name}.{os.getpid()}"
    mine.mkdir(parents=True)
    (mine / "launch").write_text(launch)
    for number in itertools.count(1):
        path = folder / f"{name}-{number}"
        with contextlib.suppress(OSError):
            os.rename(mine, path)  # at once, with the file in it: nobody sees one without
            return path
        if _launch_of(path) == launch and not place(path).exists():
            shutil.rmtree(mine)
            return path
    raise AssertionError("never comes to this")


def _launch_of(path: Path) -> str | None:
    try:
        return (path / "launch").read_text()
    except OSError:
        return None
