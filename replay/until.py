"""Time-travel search: the first step, forward or backward, at which a condition holds. # B6

Recorded values are read at once; where something was not recorded the steps are re-executed, a segment at a time.
Room: replay. May touch: one engine, where it must.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.function import Function, find, tidy
from replay.lens import Lens
from replay.moment import Moment, NotStoredError, StoredMoment
from replay.segments import cut
from replay.session import spans
from tracer import condition as language
from tracer.errors import MissingDataError, StepError, UsageError
from tracer.late import LateSeries
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracer.condition import Condition

CHUNK = 1024


def until(
    trace: Trace | str | Path,
    condition: str | Callable[[Moment], Any],
    *,
    start: int | None = None,
    backward: bool = False,
    lasting: bool = False,
    program: Callable[[], Any] | None = None,
    anyway: bool = False,
) -> int | None:
    """Return the first step at or after `start` at which `condition` holds; None if there is none.

    `backward`: the last one at or before `start`. `lasting`: the first one from which on it holds to the end. A
    condition is text (see `tracer.condition`) or a function of a `Moment`. Raise StepError, UsageError, what
    replaying raises.
    """
    if lasting and backward:
        raise UsageError("lasting goes to the end of the run: not backward")
    with contextlib.ExitStack() as stack:
        opened = trace if isinstance(trace, Trace) else stack.enter_context(open_trace(trace))
        search = _Search(opened, backward=backward, lasting=lasting)
        places = search.places(start)
        if isinstance(condition, str):
            answers = _of_text(opened, language.parse(condition), places, stack, program=program, anyway=anyway)
        else:
            answers = _of_function(opened, condition, places, stack, program=program, anyway=anyway)
        return search.first(answers)


class _Search:
    """The order in which steps are looked at, and when that is enough."""

    def __init__(self, trace: Trace, *, backward: bool, lasting: bool) -> None:
        self._trace, self._backward, self._lasting = trace, backward, lasting

    def places(self, start: int | None) -> list[np.ndarray]:
        """The steps to look at, in pieces that can be re-executed, in the order of the search."""
        first, last = self._trace.first_step, self._trace.steps - 1
        if start is not None and not first <= start <= last:
            raise StepError(f"no step {start}: there are {first} to {last}", step=start)
        low = start if start is not None and not self._backward else first
        high = start if start is not None and self._backward else last
        pieces = cut(range(low, high + 1), self._trace.keyframes, spans(self._trace))
        found = [np.array(piece, np.int64) for piece in pieces]
        return found[::-1] if self._backward or self._lasting else found

    def first(self, answers: Iterator[tuple[np.ndarray, np.ndarray]]) -> int | None:
        """Return the step that is searched for from (steps, whether it holds), piece by piece."""
        since: int | None = None
        for steps, holds in answers:
            if self._lasting:
                if holds.all():
                    since = int(steps[0])
                    continue
                tail = np.flatnonzero(~holds)[-1] + 1
                return int(steps[tail]) if tail < len(steps) else since
            found = np.flatnonzero(holds)
            if found.size:
                return int(steps[found[-1 if self._backward else 0]])
        return since


def _of_text(
    trace: Trace,
    asked: Condition,
    places: list[np.ndarray],
    stack: contextlib.ExitStack,
    *,
    program: Callable[[], Any] | None,
    anyway: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    recorded = {name: series for name in asked.names if (series := _recorded(trace, name)) is not None}
    others = [name for name in asked.names if name not in recorded]
    lost = sorted(set(asked.windowed) & {*others, *_tensors(recorded)})
    if lost:
        raise UsageError(f"a window over {lost[0]} is not known: only over recorded scalars")
    if not others:
        yield from _at_once(asked, places, recorded)
        return
    look = _looker(trace, _picking(others), stack, program=program, anyway=anyway)
    for steps in places:
        rows = look(steps.tolist())
        live = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in others}
        yield steps, _holds(asked, steps, recorded, live)


def _at_once(
    asked: Condition, places: list[np.ndarray], recorded: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for steps in places:
        for part in np.array_split(steps, -(-len(steps) // CHUNK)):
            yield part, _holds(asked, part, recorded, {})


def _holds(asked: Condition, steps: np.ndarray, recorded: dict[str, Any], live: dict[str, np.ndarray]) -> np.ndarray:
    """Windows look back: what has a window is worked out from the trace's first step on."""
    if not asked.windowed:
        return asked.holds(lambda name: live[name] if name in live else recorded[name](steps))
    if live or _tensors({name: recorded[name] for name in asked.names}):
        raise UsageError(f"{asked.text!r}: a window beside a tensor is not known; ask for them one after the other")
    whole = np.arange(recorded[asked.names[0]].first, int(steps[-1]) + 1)
    return asked.holds(lambda name: recorded[name](whole))[-len(steps) :]


def _tensors(recorded: dict[str, Any]) -> set[str]:
    return {name for name, series in recorded.items() if not isinstance(series, _Scalars)}


class _Scalars:
    """A scalar over all steps, NaN where it was not recorded."""

    def __init__(self, trace: Trace, query: str, parameters: list[str] | None = None) -> None:
        self.first = trace.first_step
        self._values = np.full(trace.steps - self.first, np.nan)
        for k, value in trace.sql(query, parameters).fetchall():
            if value is not None and k >= self.first:
                self._values[k - self.first] = value

    def __call__(self, steps: np.ndarray) -> np.ndarray:
        return self._values[steps - self.first]


def _recorded(trace: Trace, name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """What gives the recorded values of `name` at steps, or None where re-execution must."""
    columns = [c for c, kind in trace.schema()["steps"].items() if kind in _NUMERIC]
    metrics = [row[0] for row in trace.sql("select distinct name from metrics").fetchall()]
    size = trace.steps - trace.first_step
    tensors = _names(trace)
    key = language.match(name, [*columns, *metrics, *trace.captures, *tensors])
    if key in columns:
        quoted = key.replace('"', '""')
        return _Scalars(trace, f'select step, "{quoted}"::double from steps')
    if key in metrics:
        return _Scalars(trace, _NEWEST, [key, key])
    if key in trace.captures and isinstance(trace.captures[key], LateSeries):
        return _filled(trace.captures[key])
    if key in trace.captures:
        return trace.captures[key].read if len(trace.captures[key].steps) == size else None
    return None if key is None else _weights(trace, key)


def _filled(series: LateSeries) -> Callable[[np.ndarray], np.ndarray]:
    """Its values, NaN at the steps that the hindsight function was not asked about."""

    def read(steps: np.ndarray) -> np.ndarray:
        values = np.full((len(steps), *series.shape), np.nan)
        there = np.isin(steps, series.steps)
        values[there] = series.read(steps[there])
        return values

    return read


_NUMERIC = ("BIGINT", "INTEGER", "DOUBLE", "FLOAT", "HUGEINT")
# Of several versions of a hindsight metric the newest counts.
_NEWEST = (
    "select step, value from metrics where name = ? and source not like 'hindsight:%' union all "
    "select step, arg_max(value, generation) from hindsight_known where name = ? group by step"
)


def _names(trace: Trace) -> list[str]:
    """The tensors of the first state that is known."""
    if not trace.keyframes:
        return []
    return [entry["name"] for entry in trace.keyframe(trace.keyframes[0])[0]["layout"]["entries"]]


def _weights(trace: Trace, name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    if len(trace.stored_states) < trace.steps - trace.first_step:
        return None
    try:
        if name not in [entry.name for entry in trace.layout(trace.first_step).entries]:
            return None
    except MissingDataError:
        return None
    return lambda steps: trace.weights(name, steps=range(int(steps[0]), int(steps[-1]) + 1))[1]


_PICKING = """\
from tracer.condition import pick


def values(step):
    return {name: pick(step, name) for name in NAMES}
"""


def _picking(names: list[str]) -> Function:
    return Function("values", f"NAMES = {names!r}\n{_PICKING}", "condition")


def _of_function(
    trace: Trace,
    asked: Callable[[Moment], Any],
    places: list[np.ndarray],
    stack: contextlib.ExitStack,
    *,
    program: Callable[[], Any] | None,
    anyway: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    look = _looker(trace, find(asked), stack, program=program, anyway=anyway)
    for steps in places:
        yield steps, np.array([bool(next(iter(values.values()))) for values in look(steps.tolist())])


def _looker(
    trace: Trace,
    function: Function,
    stack: contextlib.ExitStack,
    *,
    program: Callable[[], Any] | None,
    anyway: bool,
) -> Callable[[list[int]], list[dict[str, Any]]]:
    """What asks a function of ascending steps: of the stored ones while that is enough, else of the re-executed ones."""
    call = function.load()
    lens: list[Lens] = []

    def look(steps: list[int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if not lens:
            try:
                for k in steps:
                    found.append(tidy(function.name, call(StoredMoment(trace, k))))  # noqa: PERF401  what there is stays
            except NotStoredError:
                lens.append(stack.enter_context(Lens(trace, function, program=program, anyway=anyway)))
        rest = steps[len(found) :]
        return found + [values for _, values in lens[0].look_at(rest)] if rest else found

    return look
