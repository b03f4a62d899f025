"""The numbers of a recorded run, a value per step: which steps there are, their scalars, what the scrubber marks.

Room: apps. May touch: reads the trace it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.addenda import arrays_changed
from tracer.errors import RewindError, StepError
from tracer.proof import changed, proof
from tracer.ranges import Ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracer import Trace
    from tracer.proof import Proof

# One question, since each would first take in what a live run wrote meanwhile. A capture without a value for a step is
# NULL and no NaN: only what the run itself gave is marked.
_MARKS = """
select 'epoch', first_step from epochs where first_step is not null
union all select distinct 'event', step from events where step is not null
union all (select 'nan', step from steps where not isfinite(loss) order by step limit 500)
"""


_LATE = """
select step, name, value from metrics where source like 'hindsight:%' order by step, source
"""


@dataclass(frozen=True)
class Marks:
    """The steps that the scrubber marks."""

    keyframes: list[int]
    epochs: list[int]
    sessions: list[int]
    nan: list[int]
    events: list[int]
    verified: list[tuple[int, int]]
    """Runs of steps that are proven: the first and the last of each."""
    diverged: list[int]


class Scalars:
    """What a run says of each step in one number. Steps are those of the trace: `first` to `last`, both included."""

    def __init__(self, trace: Trace, name: str = "") -> None:
        """`name` is what the run is called in the app and the API."""
        self.trace = trace
        self.name = name or trace.path.name
        self.told: dict[int, str] = {}
        """Verdicts of this app's that could not be kept in the trace."""
        self.late_names: frozenset[str] = frozenset()
        """The scalars that hindsight functions gave."""
        self.edition = 0
        """Another number when they have changed."""
        self._judged, self._seen_late = changed(trace.path), arrays_changed(trace.path)

    @property
    def first(self) -> int:
        """The first step."""
        return self.trace.first_step

    @property
    def last(self) -> int:
        """The last step; `first` for an empty trace."""
        return max(self.trace.first_step, self.trace.steps - 1)

    @property
    def empty(self) -> bool:
        """Whether there is no step at all."""
        return self.trace.steps <= self.trace.first_step

    def check(self, k: int) -> int:
        """Return `k`. Raise StepError where it is no step of the trace."""
        if self.empty or not self.first <= k <= self.last:
            there = "none" if self.empty else f"{self.first} to {self.last}"
            raise StepError(f"no step {k}; there are: {there}", step=k)
        return k

    @cached_property
    def scalars(self) -> dict[str, NDArray[np.float64]]:
        """Every numeric column of `steps`, float64 [T] (NULL is NaN: see `given`), `step` among them."""
        return {name: numbers(values) for name, values in self._columns.items() if _is_numeric(values)}

    @cached_property
    def _columns(self) -> dict[str, Any]:
        recorded = self.trace.sql("select * from steps order by step").fetchnumpy()
        return {**recorded, **self._late(np.asarray(recorded["step"]))}

    def _late(self, steps: NDArray[np.int64]) -> dict[str, Any]:
        """What hindsight functions gave, by name, masked at the steps that they were not asked of."""
        rows = self.trace.sql(_LATE).fetchnumpy()
        found: dict[str, Any] = {}
        for name in sorted(set(rows["name"].tolist())):
            own = rows["name"] == name
            places = np.searchsorted(steps, rows["step"][own])
            values = np.ma.masked_all(len(steps), np.float64)
            inside = places < len(steps)
            values[places[inside]] = numbers(rows["value"][own])[inside]
            found[name] = values
        self.late_names = frozenset(found)
        return found

    def given(self, name: str) -> NDArray[np.bool_]:
        """Which steps have a value of this scalar, be it NaN, bool [T]: a program need not log it at every step."""
        return ~np.ma.getmaskarray(self._columns[name])

    def table(self) -> dict[str, NDArray[Any]]:
        """Every scalar, a column each, [T]: None where a step gave none, which is no NaN."""
        there = {name: self.given(name) for name in self.scalars}
        return {n: v if there[n].all() else np.where(there[n], v.astype(object), None) for n, v in self.scalars.items()}

    @property
    def series_names(self) -> list[str]:
        """The scalars worth a chart: those that are no bookkeeping and have a value somewhere."""
        skip = {"step", "session", "epoch", "batch_index", "batch_size", "time"}
        return [n for n in self.scalars if n not in skip and (self.given(n).any() or n == "loss")]

    def scalars_at(self, k: int) -> dict[str, float]:
        """The scalars that step `k` gave; none where the step has no row, the record's own where it came just now."""
        steps = self.scalars.get("step", np.empty(0))
        place = int(np.searchsorted(steps, k))
        if place >= len(steps) and not self.empty and k <= self.last:
            return self._just_recorded(k)
        if place >= len(steps) or steps[place] != k:
            return {}
        return {name: float(v[place]) for name, v in self.scalars.items() if self._was_given(name, place)}

    def _was_given(self, name: str, place: int) -> bool:
        mask = np.ma.getmask(self._columns.get(name))
        return mask is np.ma.nomask or not mask[place]

    def _just_recorded(self, k: int) -> dict[str, float]:
        """Of a step that a live run made since the figures were read: what its record says."""
        try:
            header = self.trace.record(k)
        except RewindError:
            return {}
        known = {n: header.get(n) for n in ("step", "epoch", "loss", "lr", "grad_norm", "duration")}
        return {name: float(value) for name, value in known.items() if value is not None}

    @cached_property
    def marks(self) -> Marks:
        """Where the scrubber has marks."""
        found = self.trace.sql(_MARKS).fetchall()
        kinds = {kind: sorted(int(k) for of, k in found if of == kind) for kind in ("epoch", "event", "nan")}
        return Marks(
            keyframes=list(self.trace.keyframes),
            epochs=kinds["epoch"],
            sessions=[s.first_step for s in self.trace.sessions[1:]],
            nan=kinds["nan"],
            events=kinds["event"],
            verified=self._verified(),
            diverged=[k for k, kind in self.verdicts.items() if kind == "diverged" and k >= self.first],
        )

    # -- verdicts ------------------------------------------------------------------------------------------------------

    @cached_property
    def verdicts(self) -> dict[int, str]:
        """The newest verdict on each step that has one, by step."""
        kept = dict(self.trace.sql("select step, verdict from _verdicts order by step").fetchall())
        return dict(sorted({**kept, **self.told}.items()))

    @cached_property
    def proof(self) -> Proof:
        """What the verdicts that are kept in the trace say of the whole."""
        return proof(self.trace)

    def reread(self) -> None:
        """Take in the verdicts and the hindsight metrics that came to the trace since, from whatever process."""
        late = arrays_changed(self.trace.path)
        if late != self._seen_late:
            self._seen_late = late
            self.edition += 1
            for name in ("scalars", "_columns"):
                self.__dict__.pop(name, None)
        now = changed(self.trace.path)
        if now != self._judged:
            self._judged = now
            self._forget_verdicts()

    def tell_verdict(self, k: int, kind: str) -> None:
        """Take in a verdict that could not be kept in the trace."""
        self.told[k] = kind
        self._forget_verdicts()

    def _forget_verdicts(self) -> None:
        for name in ("verdicts", "proof", "marks"):
            self.__dict__.pop(name, None)

    def _verified(self) -> list[tuple[int, int]]:
        return list(Ranges.of(k for k, kind in self.verdicts.items() if kind == "verified" and k >= self.first).runs)


def _is_numeric(values: Any) -> bool:
    return np.asarray(values).dtype.kind in "iufb"


def numbers(values: Any) -> NDArray[np.float64]:
    """A column of DuckDB as float64; NULL is NaN."""
    if isinstance(values, np.ma.MaskedArray):
        return values.astype(np.float64).filled(np.nan)
    return np.asarray(values, np.float64)
