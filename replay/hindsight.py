"""A metric defined after the run, for every past step: from stored tensors, or by re-execution between keyframes. # B3

`metrics` then has it with source `hindsight:<hash of the source text>`; the text and the verdicts it rests on lie
beside it.
Room: replay. May touch: hindsight/ and verdicts/ of the trace; workers, each with one engine.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replay import cluster, home
from replay.function import Function, beyond_floats, find, tidy
from replay.lens import Lens
from replay.moment import NotStoredError, StoredMoment
from replay.segments import Desk, Piece, cut, packed, unpacked
from replay.session import spans
from tracer import addenda, proof
from tracer.errors import RewindError, StepError, UsageError
from tracer.ranges import Ranges
from tracer.trace import Trace, open_trace

STORED = "stored"
_TURNS = 4
"""So many rows of segments for each worker: one that is slower than the others takes fewer."""
WIDEST = 512
"""1-D results up to this length are also metrics: `name[i]`."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Hindsight:
    """What a function said: `scalars` {name: float64 [T]} and `arrays` {name: [T, ...]} at `steps` (NaN where it gave
    none).

    `verdicts` counts what the values rest on: `stored` (no re-execution was needed), `verified`, `diverged`,
    `unverifiable`.
    """

    name: str
    digest: str
    steps: np.ndarray
    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)
    path: Path | None = None

    @property
    def source(self) -> str:
        """What `metrics.source` says of it."""
        return f"hindsight:{self.digest}"


def hindsight(
    trace: Trace | str | Path,
    function: str | Function | Callable[[Any], Any],
    *,
    steps: Sequence[int] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    program: Callable[[], Any] | None = None,
    anyway: bool = False,
    progress: Progress | None = None,
) -> Hindsight:
    """Ask `function` (`file.py:name`, `module:name`, or a function) of every step in `steps`, and add its answers to
    the trace.

    It is given a `Moment` and returns {name: number or array}. Where it asks for stored things only nothing is
    re-executed; else `workers` processes (Dask's; or those of the cluster at `scheduler`) share the pieces between
    keyframes. A run that was killed goes on where it was. Raise StepError; UsageError where the function raises; what
    replaying raises.
    """
    with contextlib.ExitStack() as stack:
        opened = trace if isinstance(trace, Trace) else stack.enter_context(open_trace(trace))
        asked = find(function)
        wanted = _wanted(opened, steps)
        desk = Desk(opened.path, f"{asked.name}-{asked.digest}")
        run = _Run(opened, asked, wanted, desk, progress)
        run.resume()
        run.from_store()
        if run.missing and (workers > 1 or scheduler):
            if program is not None:
                raise UsageError("a function in this process cannot be shared among workers: leave workers at 1")
            run.by_workers(workers, scheduler, anyway=anyway)
        elif run.missing:
            run.here(program, anyway=anyway)
        return run.finish()


def _wanted(trace: Trace, steps: Sequence[int] | None) -> list[int]:
    every = range(trace.first_step, trace.steps)
    wanted = sorted(set(every if steps is None else steps))
    if wanted and not (wanted[0] in every and wanted[-1] in every):
        raise StepError(
            f"steps {wanted[0]} to {wanted[-1]} are not all in the trace: it has {every.start}:{every.stop}"
        )
    return wanted


class _Run:
    """One question to many steps."""

    def __init__(self, trace: Trace, asked: Function, wanted: list[int], desk: Desk, progress: Progress | None) -> None:
        self._trace, self._asked, self._wanted, self._desk = trace, asked, wanted, desk
        self._progress = progress
        self._pieces: list[Piece] = []
        self._left = set(wanted)

    @property
    def missing(self) -> list[list[int]]:
        """The segments that are not answered yet."""
        return cut(sorted(self._left), self._trace.keyframes, spans(self._trace))

    def resume(self) -> None:
        """Take over what an earlier run left."""
        for piece in self._desk.found():
            if self._left.issuperset(piece.steps):
                self._take(piece)

    def _take(self, piece: Piece, *, keep: bool = False) -> None:
        if keep:
            self._desk.put(piece)
        self._pieces.append(piece)
        self._left.difference_update(piece.steps)
        if self._progress is not None:
            self._progress(len(self._wanted) - len(self._left), len(self._wanted))

    def from_store(self) -> None:
        """Answer from stored tensors for as long as that is enough."""
        call = self._asked.load()
        piece = Piece()
        with contextlib.suppress(NotStoredError):
            for k in sorted(self._left):
                piece.add(k, _ask(self._asked, call, StoredMoment(self._trace, k)), STORED)
        if piece.steps:
            self._take(piece)

    def here(self, program: Callable[[], Any] | None, *, anyway: bool) -> None:
        """Answer the rest with one engine."""
        with Lens(self._trace, self._asked, program=program, anyway=anyway) as lens:
            for steps in self.missing:
                self._take(_look(lens, steps), keep=True)

    def by_workers(self, workers: int, scheduler: str | None, *, anyway: bool) -> None:
        """Answer the rest with Dask's workers, a segment at a time."""
        path, asked = self._trace.path.resolve(), self._asked.as_dict()
        if scheduler is None:
            home.prepare(path)  # it loads while Dask does
        with cluster.client_of(workers, scheduler, path, f"{__name__}:{work.__name__}") as client:
            rows = _rows(self.missing, max(workers, len(client.scheduler_info()["workers"])) * _TURNS)
            given = [(str(path), asked, row, anyway) for row in rows]
            try:
                for answer in cluster.answers(client, scheduler, work, given):
                    for data in answer:
                        self._take(unpacked(data), keep=True)
            finally:
                cluster.everywhere(client, close_lenses)

    def finish(self) -> Hindsight:
        """Put the pieces together and add them to the trace."""
        rows = sorted(
            ((k, v, sure) for p in self._pieces for k, v, sure in zip(p.steps, p.values, p.verdicts, strict=True)),
            key=lambda row: row[0],
        )
        steps = np.array([k for k, _, _ in rows], np.int64)
        scalars, arrays = _columns([values for _, values, _ in rows])
        verdicts = dict(Counter(sure for _, _, sure in rows))
        path = self._write(steps, scalars, arrays, verdicts)
        judged = [(k, sure) for k, _, sure in rows if sure != STORED]
        if judged:
            proof.keep(self._trace, judged, torch=str(torch.__version__), way="hindsight")
        self._desk.clear()
        return Hindsight(self._asked.name, self._asked.digest, steps, scalars, arrays, verdicts, path)

    def _write(
        self,
        steps: np.ndarray,
        scalars: dict[str, np.ndarray],
        arrays: dict[str, np.ndarray],
        verdicts: dict[str, int],
    ) -> Path:
        flat = dict(scalars)
        for key, values in arrays.items():
            if values.ndim == 2 and values.shape[1] <= WIDEST and not beyond_floats(values):
                flat |= {f"{key}[{i}]": values[:, i] for i in range(values.shape[1])}
        rows = [(int(k), key, float(v)) for key, column in flat.items() for k, v in zip(steps, column, strict=True)]
        facts = {"source": self._asked.source, "function": self._asked.name, "verdicts": verdicts, "steps": len(steps)}
        at = Ranges.of(steps.tolist()).runs
        forms = {key: {"dtype": str(a.dtype), "shape": list(a.shape[1:]), "at": at} for key, a in arrays.items()}
        facts |= {"arrays": forms}
        put = partial(_write_arrays, steps=steps, arrays=arrays) if arrays else None
        return addenda.write_hindsight(self._trace.path, self._asked.name, self._asked.digest, rows, facts, arrays=put)


def _ask(asked: Function, call: Callable[[Any], Any], moment: StoredMoment) -> dict[str, Any]:
    try:
        return tidy(asked.name, call(moment))
    except RewindError:
        raise
    except Exception as error:
        said = f"{asked.name} at step {moment.step}: {type(error).__name__}: {error}"
        raise UsageError(said, step=moment.step) from error


def _look(lens: Lens, steps: list[int]) -> Piece:
    piece = Piece()
    for k, (verdict, values) in zip(steps, lens.look_at(steps), strict=True):
        piece.add(k, values, verdict.kind)
    return piece


_lenses: dict[str, tuple[tuple[str, str], Lens]] = {}
"""The engine of each Dask worker in this process."""


def work(path: str, asked: dict[str, Any], pieces: list[list[int]], anyway: bool) -> list[bytes]:
    """What a worker does: answer a row of segments with its own engine, which stays warm for the next one.

    Each is kept where it can be: a run that is killed goes on from there.
    """
    function = Function(**asked)
    lens = _lens(path, function, anyway=anyway)
    desk = Desk(Path(path), f"{function.name}-{function.digest}")
    done = []
    for steps in pieces:
        piece = _look(lens, steps)
        done.append(packed(piece))
        with contextlib.suppress(OSError):
            desk.put(piece)
    return done


def _lens(path: str, function: Function, *, anyway: bool) -> Lens:
    from distributed import get_worker  # noqa: PLC0415  takes a second to import

    worker, wanted = str(get_worker().id), (path, function.digest)
    known, lens = _lenses.get(worker, (None, None))
    if known != wanted or lens is None:
        if lens is not None:
            lens.close()
        lens = Lens(path, function, anyway=anyway)
        _lenses[worker] = (wanted, lens)
    return lens


def _rows(pieces: list[list[int]], count: int) -> list[list[list[int]]]:
    """Split the pieces into about `count` rows of neighbours, about equal in steps: within one a program runs on, and needs
    not be put to another place."""
    total, rows, done = sum(map(len, pieces)), [[] for _ in range(count)], 0
    for piece in pieces:
        rows[min(count - 1, done * count // total)].append(piece)
        done += len(piece)
    return [row for row in rows if row]


def close_lenses() -> None:
    """End the engines of this process's workers."""
    while _lenses:
        _, (_, lens) = _lenses.popitem()
        lens.close()


def _columns(rows: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns of numbers, and of arrays: those of another shape than the largest are filled up with NaN."""
    scalars: dict[str, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        found = [row.get(key, np.nan) for row in rows]
        if all(isinstance(value, float) for value in found):
            scalars[key] = np.array(found, np.float64)
        else:
            arrays[key] = _stack([np.asarray(value) for value in found])
    return scalars, arrays


def _stack(values: list[np.ndarray]) -> np.ndarray:
    dims = max(v.ndim for v in values)
    shape = tuple(max(v.shape[i] for v in values if v.ndim == dims) for i in range(dims))
    if all(v.shape == shape for v in values) and np.result_type(*values).kind == values[0].dtype.kind:
        return np.stack(values)
    if any(map(beyond_floats, values)):
        raise UsageError("whole numbers that no float holds need one shape and type at every step")
    stacked = np.full((len(values), *shape), np.nan)
    for place, value in zip(stacked, values, strict=True):
        if value.ndim == dims:
            place[tuple(slice(n) for n in value.shape)] = value
    return stacked


def _write_arrays(path: Path, steps: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    """A Zarr group beside the Parquet file, `step` [T] and each array [T, ...], there at once by a rename."""
    import zarr  # noqa: PLC0415  heavy, and most metrics are numbers

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    group = zarr.open_group(str(temporary), mode="w")
    for key, values in {"step": steps, **arrays}.items():
        names = ["step", *(f"dim_{i}" for i in range(1, values.ndim))]
        group.create_array(key, data=np.ascontiguousarray(values), dimension_names=names)
    os.replace(temporary, path)
