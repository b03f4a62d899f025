"""The pieces of a hindsight run: which steps belong together, what was worked out for each, kept until all are there.
# B3

A piece is written whole, by one rename, when its segment is done; a run that was killed goes on with the pieces it
finds.
Room: replay. May touch: a folder of its own under hindsight/ of the trace.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from replay.timeline import Span


@dataclass
class Piece:
    """What a function said of some steps: {key: value} each, and how sure the step is (stored, verified, diverged
    ...)."""

    steps: list[int] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)

    def add(self, k: int, values: dict[str, Any], verdict: str) -> None:
        """Add step `k`; tensors become arrays, bfloat16 as float32."""
        self.steps.append(k)
        self.values.append({key: _array(value) for key, value in values.items()})
        self.verdicts.append(verdict)


def _array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return value


def cut(steps: Sequence[int], keyframes: Sequence[int], spans: Sequence[Span]) -> list[list[int]]:
    """Split ascending `steps` where a keyframe or a session lies between: each piece can be re-executed by itself.

    >>> cut([1, 2, 6, 12], [0, 5, 10], [Span(0, 0, 20)])
    [[1, 2], [6], [12]]
    """
    borders = sorted({*keyframes, *(s.first for s in spans)})
    pieces: list[list[int]] = []
    place = -1
    for k in steps:
        here = int(np.searchsorted(borders, k, side="right"))
        if here != place:
            pieces.append([])
            place = here
        pieces[-1].append(k)
    return pieces


class Desk:
    """Where finished pieces wait."""

    def __init__(self, trace: Path, stem: str) -> None:
        """Of the run `stem` (a function's name and hash) on the trace at `trace`."""
        self._folder = trace / "hindsight" / f".{stem}.pieces"

    def put(self, piece: Piece) -> None:
        """Keep `piece`, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"{piece.steps[0]}-{piece.steps[-1]}-{len(piece.steps)}.npz"
        temporary = target.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(packed(piece))
        os.replace(temporary, target)

    def found(self) -> Iterator[Piece]:
        """The pieces of an earlier run."""
        for path in sorted(self._folder.glob("*.npz")):
            yield unpacked(path.read_bytes())

    def clear(self) -> None:
        """All is done: the pieces are not needed any more."""
        shutil.rmtree(self._folder, ignore_errors=True)


def packed(piece: Piece) -> bytes:
    """Return a piece as bytes: an .npz of its arrays, with the rest as JSON."""
    arrays, rows = {}, []
    for i, values in enumerate(piece.values):
        row = {}
        for j, (key, value) in enumerate(values.items()):
            row[key] = value if isinstance(value, float) else {"array": f"a{i}_{j}"}
            if not isinstance(value, float):
                arrays[f"a{i}_{j}"] = np.asarray(value)
        rows.append(row)
    text = json.dumps({"steps": piece.steps, "rows": rows, "verdicts": piece.verdicts})
    sink = io.BytesIO()
    np.savez(sink, text=np.frombuffer(text.encode(), np.uint8), **arrays)
    return sink.getvalue()


def unpacked(data: bytes) -> Piece:
    """Return the piece whose bytes are `data`; nothing is unpickled."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        facts = json.loads(file["text"].tobytes())
        rows = [{k: file[v["array"]] if isinstance(v, dict) else v for k, v in row.items()} for row in facts["rows"]]
    return Piece(facts["steps"], rows, facts["verdicts"])
