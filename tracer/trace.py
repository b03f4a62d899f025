"""A recorded run, to be read: states, batches, captures, SQL. The reader need not know where a thing lies.

Room: tracer. May touch: reads the trace it is given; nothing in it is executed or unpickled.
"""

from __future__ import annotations

import functools
import math
import os
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer import ahead, manifest, origin, stored, variables
from tracer.captures import Captures
from tracer.chain import Chain
from tracer.damage import structural
from tracer.errors import MissingDataError, StepError, UsageError
from tracer.index import Index
from tracer.late import Late
from tracer.progress import read as read_progress
from tracer.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    import duckdb
    import torch
    import xarray

    from tracer.manifest import Manifest, SessionFacts
    from tracer.packing import Entry, PackedLayout
    from tracer.ranges import Ranges
    from tracer.segments import Segment
    from tracer.stored import State
    from tracer.variables import Variables


def open_trace(path: str | Path) -> Trace:
    """Open the trace at `path`, of a finished run or of one that goes on.

    Raise NotATraceError, FormatVersionError or DamageError.
    """
    if manifest.read(Path(path)).parent is None:
        return Trace(Path(path))
    # By name: a branch is made of a Trace itself.
    return import_module("tracer.branched").BranchTrace(Path(path))


class Trace:
    """A recorded run of n steps: state k is what step k starts from, so there are n+1 states."""

    def __init__(self, path: Path) -> None:
        """Open the trace at `path`."""
        self.path = Path(path)
        self._chain = Chain(self.path)
        self._asked_ahead: dict[int, bool | None] = {}
        self._samples = Samples(self._chain)
        self._index: Index | None = None
        self._closers: list[Callable[[], None]] = []
        self.captures = Captures(lambda: self._chain, Late(self.path, lambda: self._chain).series)

    # -- what there is -------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The facts of trace.json, as of the last refresh."""
        return self._chain.manifest

    @property
    def sessions(self) -> tuple[SessionFacts, ...]:
        """The processes that wrote into the trace, in order."""
        return self.manifest.sessions

    @property
    def steps(self) -> int:
        """n: one more than the last step."""
        return self._chain.end

    @property
    def first_step(self) -> int:
        """The first step: 0, or where a branch begins."""
        return self._chain.first_step

    def __len__(self) -> int:
        return self.steps

    @property
    def keyframes(self) -> list[int]:
        """The states of which there are keyframes, ascending."""
        return self._chain.keyframes()

    @property
    def stored_states(self) -> Ranges:
        """The states whose weights are stored."""
        return self._chain.stored_states()

    @property
    def recorded_steps(self) -> Ranges:
        """The steps that were recorded: those that were lost, or not yet written, are not among them."""
        return self._chain.recorded_steps()

    @property
    def superseded(self) -> dict[int, int]:
        """{session: step from which on later sessions have taken its place}, for those of which that is so. # S1.3"""
        return dict(self._chain.cuts)

    def session_of(self, k: int) -> int:
        """The session that step `k` belongs to. Raise StepError."""
        return self._chain.session_of(k)

    def refresh(self) -> bool:
        """Take in what a live run has written since; return whether there was anything."""
        changed = self._chain.refresh()
        if changed:
            self._samples = Samples(self._chain)
        return changed

    def let_go(self) -> None:
        """Hold nothing of what was read: it is read again when it is next asked for."""
        self._chain.arrays.forget()

    # -- states --------------------------------------------------------------------------------------------------------

    def has_state(self, k: int) -> bool:
        """Whether the weights of state `k` are stored. Raise StepError."""
        return self._chain.with_state(k) is not None

    def state(self, k: int) -> State:
        """Return state `k`: tensors by the names of `state_dict()`.

        Stored ones are read, others re-executed (through the entry point group `rewind.reexecute`): that runs the
        recorded program, so it is refused of a trace that somebody else recorded (`tracer.origin`). Raise StepError,
        DamageError, UsageError, and what re-execution raises.
        """
        segment = self._chain.with_state(k)
        if segment is None:
            return self._reexecute("state", k)
        layout, words = segment.words(k)
        return stored.State(k, self.fingerprint(k), stored.unpack(layout, words))

    def _reexecute(self, what: str, k: int) -> Any:
        if not origin.may_run(self.path, self.manifest):
            raise UsageError(
                f"{self.path}: {what} {k} was not stored, and to re-execute it runs the program of a trace that lacks the mark "
                "of one that you recorded here: look at its source/, then seek it with replay.Session",
                step=k,
                path=self.path,
            )
        engines = list(entry_points(group="rewind.reexecute", name=what))
        if not engines:
            raise MissingDataError(f"{self.path}: {what} {k} was not stored, and nothing can re-execute it", step=k)
        return engines[0].load()(self, k)

    def fingerprint(self, k: int) -> str | None:
        """The fingerprint of state `k`, 16 hex digits; None where it was not recorded. Raise StepError."""
        segment = self._chain.with_fingerprint(k)
        return segment.fingerprint(k) if segment is not None else None

    def layout(self, k: int) -> PackedLayout:
        """How stored state `k` is packed. Raise MissingDataError where it is not stored."""
        segment = self._chain.with_state(k)
        if segment is None:
            raise MissingDataError(f"{self.path}: the weights of state {k} were not stored", step=k)
        return segment.layout_of(k)

    def weights(
        self, name: str, rows: int | Iterable[int] | None = None, steps: range | slice | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one tensor over time, from the stored states: (states int64 [T], values [T, ...]).

        `rows` chooses rows of its first dimension (an int: that row, without the dimension); `steps` chooses states.
        bfloat16 comes as float32. Raise NameUnknownError, MissingDataError where no states are stored.
        """
        states = _chosen(self.stored_states.array(), steps)
        if not len(states):
            hint = "`trace.state(k)` re-executes"
            raise MissingDataError(f"{self.path}: no weights are stored there; {hint}", tensor=name)
        groups = [g for g in self._by_layout(states) if any(e.name == name for e in g[1].entries)]
        if not groups:
            self.layout(int(states[-1])).entry(name)
        parts = [_weights_of(segment, layout, own, name, rows) for segment, layout, own in groups]
        return np.concatenate([own for _, _, own in groups]), np.concatenate(parts)

    def _by_layout(self, states: np.ndarray) -> list[tuple[Segment, PackedLayout, np.ndarray]]:
        """Stored states in runs that lie in one segment, packed alike."""
        groups: list[tuple[Segment, PackedLayout, list[np.ndarray]]] = []
        place = 0
        while place < len(states):
            k = int(states[place])
            segment = self._chain.with_state(k)
            assert segment is not None
            layout = segment.layout_of(k)
            last = min(segment.last_alike(k), self._chain.cuts.get(segment.session, math.inf) - 1)
            end = max(place + 1, int(np.searchsorted(states, last, "right")))
            if not groups or groups[-1][0] is not segment or groups[-1][1] is not layout:
                groups.append((segment, layout, []))
            groups[-1][2].append(states[place:end])
            place = end
        return [(segment, layout, np.concatenate(own)) for segment, layout, own in groups]

    # -- steps ---------------------------------------------------------------------------------------------------------

    def record(self, k: int) -> dict[str, Any]:
        """The header of step `k`, as FORMAT.md describes it. Raise StepError, MissingDataError."""
        return self._chain.with_step(k).header(k)

    def piece(self, k: int, name: str) -> bytes:
        """A section of step `k` that replay needs: ids0, inline, rng, ... Raise MissingDataError."""
        try:
            return self._chain.with_step(k).piece(k, name)
        except KeyError:
            raise MissingDataError(f"{self.path}: step {k} has no {name!r}", step=k) from None

    def batch(self, k: int) -> Any:
        """The batch of step `k`, nested as the loop got it; a list of them where it fetched several, to train on each.

        One of which only how it was made is stored is made again, by the program itself (see `state`). Raise StepError,
        MissingDataError, and what re-execution raises.
        """
        if any("made" in fetched for _, fetched, _ in self._trained_on(k)):
            return self._reexecute("batch", k)
        return self.stored_batch(k)

    def stored_batch(self, k: int) -> Any:
        """As `batch`, and nothing is re-executed. Raise StepError, MissingDataError."""
        found = self._trained_on(k)
        if not found or any(fetched.get("batch") is None for _, fetched, _ in found):
            raise MissingDataError(f"{self.path}: the batch of step {k} was not recorded", step=k)
        batches = [self._decode_batch(at, f["batch"], f.get("inline", ()), prefix) for at, f, prefix in found]
        return batches[0] if len(batches) == 1 else batches

    def made_for(self, k: int) -> list[tuple[int, int | None]]:
        """Where the fetches are that step `k` was trained on: the step each belongs to, and its number among the skipped ones.

        Empty where the trace has them all. Raise StepError.
        """
        found = self._trained_on(k)
        if not any("made" in fetched for _, fetched, _ in found):
            return []
        return [(at, int(prefix[1:-1]) if prefix else None) for at, _, prefix in found]

    def _trained_on(self, k: int) -> list[tuple[int, dict[str, Any], str]]:
        """The fetches that step `k` was trained on, as (step, fetch, prefix of its sections)."""
        header = self.record(k)
        return self._fetched_before(k, header) if self._is_asked_ahead(k) else [(k, header, "")]

    def _is_asked_ahead(self, k: int) -> bool:
        """Whether the loader at step `k` was asked one batch ahead, as the last keyframe within a loop over one shows."""
        own = self._chain.of_session(self._chain.session_of(k))
        before = sorted((f for segment in own for f in segment.keyframes if f <= k), reverse=True)
        for frame in before:
            if frame not in self._asked_ahead:
                tree, _ = self.keyframe(frame)
                self._asked_ahead[frame] = ahead.is_asked_ahead(tree.get("site")) if tree.get("inner") else None
            if self._asked_ahead[frame] is not None:
                return bool(self._asked_ahead[frame])
        return False

    def _fetched_before(self, k: int, header: dict[str, Any]) -> list[tuple[int, dict[str, Any], str]]:
        """What step `k` was trained on, as (step, fetch, prefix): the last fetch before it, and its own but the last."""
        skipped = [(k, fetch, f"s{i}.") for i, fetch in enumerate(header.get("skipped", ()))]
        at_end = header.get("batch") is None
        if header["left"] and not at_end:
            return skipped
        last = self.record(k - 1) if k > self.first_step else {}
        return [(k - 1, last, ""), *skipped]

    def extra_batches(self, k: int) -> list[Any]:
        """The further batches that step `k` fetched (a GAN, say), in order; where a loader was at its end there is none."""
        extras = [(i, e) for i, e in enumerate(self.record(k).get("extras", ())) if not e.get("stop")]
        return [self._decode_batch(k, e["batch"], e.get("inline", ()), f"x{i}.") for i, e in extras]

    def _decode_batch(self, k: int, node: Any, sizes: Iterable[int], prefix: str) -> Any:
        inline = stored.split(self.piece(k, f"{prefix}inline"), sizes) if sizes else []
        return stored.batch(node, inline, lambda j: self.piece(k, f"{prefix}ids{j}"), self._samples.rows)

    def hold_samples(self) -> None:
        """Keep the samples that are read in memory: for who reads batch after batch, as a replay does."""
        self._samples = Samples(self._chain, at_hand=True)

    def samples(self, pool: str, ids: np.ndarray) -> memoryview:
        """The bytes of the samples `ids` (uint32) of `pool`, one after the other. Raise MissingDataError."""
        return self._samples.rows(pool, ids)

    @property
    def sample_counts(self) -> dict[str, int]:
        """How many samples each pool has: a later session goes on from there."""
        return self._samples.counts

    def grads(self, k: int) -> dict[str, torch.Tensor]:
        """The gradients of step `k` by parameter. Raise StepError, MissingDataError where they were not recorded."""
        segment = self._chain.with_step(k)
        try:
            layout, words = segment.grads(k)
        except KeyError:
            raise MissingDataError(f"{self.path}: the gradients of step {k} were not recorded", step=k) from None
        return stored.unpack(layout, words, only_params=True)

    # -- keyframes -----------------------------------------------------------------------------------------------------

    def keyframe(self, k: int) -> tuple[Any, Callable[[int], bytes]]:
        """The keyframe of state `k`: (tree, read), `read(i)` giving buffer i. Raise MissingDataError, DamageError; so may `read`."""
        segment = self._chain.with_keyframe(k)
        if segment is None:
            raise MissingDataError(f"{self.path}: there is no keyframe of state {k}", step=k)
        tree, sizes, data = segment.keyframe(k)
        parts = functools.cache(lambda: stored.split(data(), sizes))  # many ask for the tree alone
        return tree, lambda i: parts()[i]

    def keyframe_at_or_before(self, k: int) -> int | None:
        """The nearest keyframe of the same session from which state `k` can be re-executed; None if there is none."""
        own = self._chain.of_session(self._chain.session_of(k))
        return max((f for segment in own for f in segment.keyframes if f <= k), default=None)

    def blob(self, digest: str, *, near: int | None = None) -> bytes:
        """A content-addressed blob; `near`, a step that names it, makes it quicker. Raise MissingDataError."""
        first = self._chain.near(near) if near is not None else []
        for segment in [*first, *self._chain]:
            try:
                return segment.blob(digest)
            except KeyError:
                continue
        raise MissingDataError(f"{self.path}: no blob {digest}", step=near)

    # -- SQL -----------------------------------------------------------------------------------------------------------

    def _open_index(self) -> Index:
        if self._index is None:
            self._index = self._new_index()
        elif self._is_live():
            self.refresh()
        self._index.refresh()
        return self._index

    def _new_index(self) -> Index:
        return Index(self._chain)

    def sql(self, query: str, params: Any = None) -> duckdb.DuckDBPyRelation:
        """Query the views steps, metrics, features, captures, keyframes, sessions, epochs, events, branches.

        Returns a DuckDB relation: `.fetchall()`, `.df()`, `.arrow()`, `.pl()`. Reading only: nothing outside the trace
        can be read or written. Raise UsageError where DuckDB refuses the query.
        """
        return self._open_index().query(query, params)

    def sql_within(self, seconds: float) -> AbstractContextManager[None]:
        """Give the SQL of a `with` block, and reading its answers, so many seconds; then it is stopped by UsageError."""
        return self._open_index().limited(seconds)

    def schema(self) -> dict[str, dict[str, str]]:
        """The views and their columns: {view: {column: type}}."""
        return self._open_index().schema()

    def damage(self) -> list[str]:
        """What of the trace is missing or cut short, a line each, as its commits and tails tell it.

        `tracer.damage.damages` looks into every file.
        """
        return list(structural(self._chain))

    # -- the whole -----------------------------------------------------------------------------------------------------

    def _is_live(self) -> bool:
        return any(session.status == "running" for session in self.sessions)

    def status(self) -> dict[str, Any]:
        """How far the run is, in the fields of `tracer.progress.FIELDS`; a run that was killed is `crashed`. # S3.3

        Unknown ones are None. Raise DamageError.
        """
        return read_progress(self.path, manifest.read(self.path).sessions)

    def info(self) -> dict[str, Any]:
        """The facts that `rewind info` prints."""
        size = _nbytes(self.path)
        program = self.manifest.program
        count = len(self.recorded_steps)
        return {
            "steps": self.steps,
            "sessions": len(self.sessions),
            "keyframes": len(self.keyframes),
            "detail": self.manifest.detail,
            "bytes": size,
            "bytes_per_step": size / count if count else 0.0,
            "replayable": self.manifest.detail != "metrics" and bool(self.keyframes),
            "script": program.path or program.module,
            "parent": self.manifest.parent.trace if self.manifest.parent else None,
        }

    @property
    def variables(self) -> Variables:
        """The environment variables that the last session looked up."""
        return variables.read(self.path, max((s.session for s in self.manifest.sessions), default=0))

    @cached_property
    def verdicts(self) -> Mapping[int, str]:
        """The verdict of each step that was verified, as of the first time this is asked."""
        found = self.sql("select step, verdict from steps where verdict is not null").fetchall()
        return dict(found)

    def xarray(self) -> xarray.Dataset:
        """The tensors and scalars of the trace as one lazy dataset over `step`."""
        from tracer.dataset import dataset  # noqa: PLC0415 -- xarray is heavy, and few ask for it

        return dataset(self)

    def on_close(self, act: Callable[[], None]) -> None:
        """Call `act` when the trace is closed: who keeps something for it gives it back then."""
        self._closers.append(act)

    def close(self) -> None:
        """Give back files and memory, and end the program that re-executed states, where one runs."""
        closers, self._closers = self._closers, []
        for act in closers:
            act()
        if self._index is not None:
            self._index.close()
            self._index = None

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Trace({str(self.path)!r}, {self.steps} steps)"


def _chosen(states: np.ndarray, steps: range | slice | np.ndarray | None) -> np.ndarray:
    if steps is None:
        return states
    if isinstance(steps, slice):
        if steps.step not in (None, 1):
            raise StepError("a slice of steps has no stride here: give a range")
        first, last = steps.start or 0, steps.stop
        return states[(states >= first) & (states < last if last is not None else True)]
    return states[np.isin(states, np.asarray(steps))]


def _weights_of(
    segment: Segment, layout: PackedLayout, states: np.ndarray, name: str, rows: int | Iterable[int] | None
) -> np.ndarray:
    """One tensor, or rows of it, at `states`, all of which `segment` stores packed as `layout`."""
    entry = layout.entry(name)
    chosen = None if rows is None else np.atleast_1d(np.asarray(rows, np.int64))
    first, last = _word_span(layout, entry, chosen)
    words = segment.columns(states, first, last)
    data = words.view(np.uint8).reshape(len(states), -1)
    skip = entry.offset - first * layout.word
    if chosen is None:
        return stored.array(data[:, skip : skip + entry.nbytes], entry.dtype, entry.shape)
    size = entry.row_bytes
    picked = np.concatenate([data[:, skip + r * size : skip + (r + 1) * size] for r in chosen.tolist()], axis=1)
    values = stored.array(picked, entry.dtype, (len(chosen), *entry.shape[1:]))
    return values[:, 0] if np.ndim(rows) == 0 else values


def _word_span(layout: PackedLayout, entry: Entry, rows: np.ndarray | None) -> tuple[int, int]:
    """The words that hold the tensor, or its chosen rows: first, and one more than the last."""
    first, last = entry.offset, entry.offset + entry.nbytes
    if rows is not None and len(rows):
        if not entry.shape or rows.min() < 0 or rows.max() >= entry.shape[0]:
            raise StepError(f"{entry.name} has {entry.shape[:1]} rows, not {rows.tolist()}", tensor=entry.name)
        last = first + (int(rows.max()) + 1) * entry.row_bytes
        first += int(rows.min()) * entry.row_bytes
    return first // layout.word, -(-last // layout.word)


def _nbytes(path: Path) -> int:
    total = 0
    for name, _, files in os.walk(path):
        for file in files:
            try:
                total += os.stat(os.path.join(name, file)).st_size
            except OSError:  # a run that goes on replaces its files while we look
                continue
    return total
