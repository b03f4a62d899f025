"""A branch as the reader sees it: what lies before its first step is its parent's, read where it lies, never copied. # B4

The parent is looked for at the place that trace.json names, then beside the branch; it is known by its id. Where it is
gone the branch's own steps are all there is, and whoever asks for an earlier one is told so.
Room: tracer. May touch: reads the branch and its parents; writes nothing.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer import manifest
from tracer.captures import Captures, CaptureSeries, joined
from tracer.errors import DamageError, MissingDataError, TraceError
from tracer.index import Index, store
from tracer.late import Late
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch

    from tracer.chain import Chain
    from tracer.manifest import Parent
    from tracer.stored import State

_log = logging.getLogger("rewind")


class BranchTrace(Trace):
    """A trace with a parent: steps before `first_step` are the parent's, in every question but what replay needs."""

    def __init__(self, path: Path) -> None:
        """Open the branch at `path`; the parent is opened when it is asked for."""
        super().__init__(path)
        assert self.manifest.parent is not None
        self._origin: Parent = self.manifest.parent
        self._younger = frozenset({self.manifest.id})
        self._opened_parent = False
        self.captures = BranchCaptures(self)

    @cached_property
    def parent(self) -> Trace:
        """The trace that this one branched off. Raise MissingDataError where it is gone, DamageError for a circle."""
        if self._origin.id in self._younger:
            raise DamageError(f"{self.path}: it is its own forebear, says trace.json", path=self.path)
        found = open_trace(find_parent(self.path, self._origin))
        if isinstance(found, BranchTrace):
            found._younger = self._younger | {found.manifest.id}
        self._opened_parent = True
        return found

    def _is_before(self, k: int) -> bool:
        return k < self._origin.at_step

    def has_state(self, k: int) -> bool:
        """As Trace."""
        return self.parent.has_state(k) if self._is_before(k) else super().has_state(k)

    def state(self, k: int) -> State:
        """As Trace."""
        return self.parent.state(k) if self._is_before(k) else super().state(k)

    def fingerprint(self, k: int) -> str | None:
        """As Trace."""
        return self.parent.fingerprint(k) if self._is_before(k) else super().fingerprint(k)

    def record(self, k: int) -> dict[str, Any]:
        """As Trace."""
        return self.parent.record(k) if self._is_before(k) else super().record(k)

    def batch(self, k: int) -> Any:
        """As Trace."""
        return self.parent.batch(k) if self._is_before(k) else super().batch(k)

    def stored_batch(self, k: int) -> Any:
        """As Trace."""
        return self.parent.stored_batch(k) if self._is_before(k) else super().stored_batch(k)

    def extra_batches(self, k: int) -> list[Any]:
        """As Trace."""
        return self.parent.extra_batches(k) if self._is_before(k) else super().extra_batches(k)

    def piece(self, k: int, name: str) -> bytes:
        """As Trace."""
        return self.parent.piece(k, name) if self._is_before(k) else super().piece(k, name)

    def grads(self, k: int) -> dict[str, torch.Tensor]:
        """As Trace."""
        return self.parent.grads(k) if self._is_before(k) else super().grads(k)

    def weights(
        self, name: str, rows: int | Iterable[int] | None = None, steps: range | slice | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As Trace; without `steps` those of the branch alone."""
        if isinstance(steps, slice) and self._is_before(steps.start or 0):
            steps = range(steps.start or 0, self.steps + 1 if steps.stop is None else steps.stop)
        wanted = np.asarray(steps) if steps is not None and not isinstance(steps, slice) else np.empty(0, np.int64)
        before = wanted[wanted < self._origin.at_step]
        if not len(before):
            return super().weights(name, rows, steps)
        found = [self.parent.weights(name, rows, before)]
        if len(before) < len(wanted):
            found.append(super().weights(name, rows, wanted[wanted >= self._origin.at_step]))
        return np.concatenate([at for at, _ in found]), np.concatenate([values for _, values in found])

    def _new_index(self) -> Index:
        return BranchIndex(self._chain, self)

    def close(self) -> None:
        """As Trace; the parent's files, too."""
        super().close()
        if self._opened_parent:
            self.parent.close()


def find_parent(path: Path, origin: Parent) -> Path:
    """Return where the parent of the branch at `path` lies. Raise MissingDataError."""
    beside = (folder for folder in sorted(path.resolve().parent.iterdir()) if (folder / "trace.json").is_file())
    for place in (Path(origin.trace), *beside):
        try:
            if manifest.read(place).id == origin.id:
                return place
        except TraceError:
            continue
    raise MissingDataError(
        f"{path}: what lies before step {origin.at_step} is in its parent {origin.trace}, which is not there:"
        " put it back, there or beside the branch",
        path=path,
        step=origin.at_step,
    )


class BranchSeries(CaptureSeries):
    """A capture over the parent's steps and then the branch's own."""

    def __init__(self, key: str, at: int, elder: CaptureSeries | None, own: CaptureSeries | None) -> None:
        """`elder`: the parent's, of which the steps before `at` count; one of the two may be missing."""
        self.key = key
        self._at = at
        self._elder, self._own = elder, own

    @property
    def _newest(self) -> CaptureSeries:
        found = self._own if self._own is not None else self._elder
        assert found is not None
        return found

    @property
    def steps(self) -> np.ndarray:
        """As CaptureSeries."""
        before, after = (np.empty(0, np.int64) if s is None else s.steps for s in (self._elder, self._own))
        return np.concatenate([before[before < self._at], after])

    @property
    def dtype(self) -> str:
        """As CaptureSeries."""
        return self._newest.dtype

    @property
    def dims(self) -> tuple[str, ...] | None:
        """As CaptureSeries."""
        return self._newest.dims

    @property
    def shape(self) -> tuple[int, ...]:
        """As CaptureSeries."""
        shapes = [s.shape for s in (self._elder, self._own) if s is not None]
        same = [shape for shape in shapes if len(shape) == len(shapes[-1])]
        return tuple(max(sizes) for sizes in zip(*same, strict=True))

    def _side(self, step: int) -> CaptureSeries:
        found = self._elder if step < self._at else self._own
        if found is None:
            raise MissingDataError(f"{self.key!r} was not captured at step {step}", step=step, tensor=self.key)
        return found

    def __contains__(self, step: object) -> bool:
        found = self._elder if isinstance(step, int) and step < self._at else self._own
        return found is not None and step in found

    def __getitem__(self, step: int) -> torch.Tensor:
        return self._side(step)[step]

    def read(self, steps: Iterable[int] | np.ndarray | None = None) -> np.ndarray:
        """As CaptureSeries."""
        wanted = self.steps if steps is None else np.asarray(list(steps), np.int64)
        halves = [half for half in (wanted[wanted < self._at], wanted[wanted >= self._at]) if len(half)]
        return joined([self._side(int(half[0])).read(half) for half in halves] or [self._newest.read([])])


class BranchCaptures(Captures):
    """The captures of a branch and, before it, of its parent."""

    def __init__(self, trace: BranchTrace) -> None:
        """`trace` is the branch."""
        super().__init__(lambda: trace._chain, Late(trace.path, lambda: trace._chain).series)
        self._trace = trace

    def _elders(self) -> Mapping[str, CaptureSeries]:
        try:
            return self._trace.parent.captures
        except MissingDataError:
            return {}

    def __getitem__(self, key: str) -> CaptureSeries:
        elders = self._elders()
        own = super().__getitem__(key) if super().__contains__(key) or key not in elders else None
        return BranchSeries(key, self._trace._origin.at_step, elders.get(key), own)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self._elders()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*super().__iter__(), *self._elders()}))

    def __len__(self) -> int:
        return len(set(self))


_BY_STEP = ("steps", "all_steps", "features", "captures", "keyframes", "events")


def _halves(at: int) -> Iterator[tuple[str, str, str]]:
    """(view, which of the parent's rows come before the branch, which rows are the branch's own)."""
    yield from ((view, f"step < {at}", f"coalesce(step, {at}) >= {at}") for view in (*_BY_STEP, "metrics"))
    yield "epochs", f"last_step < {at}", "true"
    yield "sessions", f"first_step < {at}", "true"
    yield "branches", "true", "true"


class BranchIndex(Index):
    """The SQL side of a branch: every view begins with the parent's rows from before the branch.

    The parent's sessions have negative numbers there. `parent_steps` has all steps of the parent, those beside the
    branch, too: `select step, s.loss, p.loss from steps s join parent_steps p using (step)` lays one over the other.
    """

    def __init__(self, chain: Chain, trace: BranchTrace) -> None:
        """As Index; `trace` is the branch."""
        super().__init__(chain)
        self._trace = trace
        self._told = self._joined = False

    def _beside(self) -> Any:
        try:
            return self._trace.parent._open_index().seen
        except TraceError:
            return None

    def _complete(self) -> None:
        try:
            parent = self._trace.parent
        except TraceError as error:
            if not self._told:
                self._told = True
                _log.warning("%s", error)
            return
        self._take(parent)
        self._join(self._trace._origin.at_step)
        self._joined = True

    def _take(self, parent: Trace) -> None:
        """Copy the parent's rows; its sessions are numbered so that its last is -1."""
        count = max((s.session for s in parent.sessions), default=-1) + 1
        for view in (*_BY_STEP, "epochs", "sessions", "metrics", "branches"):
            renumbered = "" if view in ("metrics", "branches") else f" replace (session - {count} as session)"
            store(self._connection, f"elder_{view}", parent.sql(f"select *{renumbered} from {view}").to_arrow_table())

    def _join(self, at: int) -> None:
        for view, before, after in _halves(at):
            self._connection.execute(f"DROP VIEW IF EXISTS own_{view}")
            self._connection.execute(f"ALTER VIEW {view} RENAME TO own_{view}")
            # What stands on another view sees the joined one: of its rows, too, only the branch's own are meant here.
            own, elder = f"SELECT * FROM own_{view} WHERE {after}", f"SELECT * FROM elder_{view} WHERE {before}"
            self._connection.execute(f"CREATE OR REPLACE VIEW {view} AS {own} UNION ALL BY NAME {elder}")
        self._connection.execute("CREATE OR REPLACE VIEW parent_steps AS SELECT * EXCLUDE (session) FROM elder_steps")

    def views(self) -> tuple[str, ...]:
        """As Index."""
        return (*super().views(), *(("parent_steps",) if self._joined else ()))
