"""Whether a trace is proven: what re-executions said of its steps, kept in it, and told in one line. # B2, C3

A verdict is no recorded data: it lies in `verdicts/`, can be thrown away and found out again. A row is (step, session,
verdict, generation, time, torch, way), of several on a step the newest counts. It is said of the session whose step was
run again: a step that a later session made anew has none. Files are never changed; when there are many, one with all of
their rows takes their place, and they go a while after.
Room: tracer. May touch: verdicts/ of the trace it is given.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from tracer import addenda
from tracer.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tracer.trace import Trace

_MANY: Final = 24
_A_WHILE: Final = 60.0
"""Seconds after which no reader is still about to open what was listed before."""
_KINDS: Final = ("verified", "diverged", "unverifiable")
_ASKED: Final = (
    "select verdict, torch, count(*), min(step), min(time), max(time) from _verdicts "
    "where step >= ? and step < ? group by verdict, torch order by max(time)"
)


@dataclass(frozen=True)
class Proof:
    """What is known of the `steps` steps of a trace; `first_diverged` is the first that diverged.

    `since` and `until`: when the verdicts were given, in seconds since 1970; `torch`: the versions that gave them.
    """

    steps: int
    verified: int = 0
    diverged: int = 0
    unverifiable: int = 0
    first_diverged: int | None = None
    since: float | None = None
    until: float | None = None
    torch: tuple[str, ...] = ()

    @property
    def untried(self) -> int:
        """How many steps have no verdict."""
        return self.steps - self.verified - self.diverged - self.unverifiable

    @property
    def whole(self) -> bool:
        """Whether every step is proven."""
        return 0 < self.steps == self.verified

    @property
    def words(self) -> str:
        """`proven: 500 of 500 steps, on 2026-11-21, torch 2.15.0`, or what is known instead; never more than is."""
        if self.untried == self.steps:
            return "not verified yet" if self.steps else "no steps"
        kept = f"{self.verified} of {self.steps} steps"
        words = "not proven" if self.diverged else "proven" if self.whole else "proven in part" if self.verified else ""
        said = [f"{words}: {kept}" if words else f"{kept} proven"]
        said += [f"{self.diverged} diverged, the first is step {self.first_diverged}"] if self.diverged else []
        said += [f"{self.unverifiable} unverifiable"] if self.unverifiable else []
        return ", ".join([*said, *([f"on {_days(self.since, self.until)}"] if self.since else []), *self._torch])

    @property
    def _torch(self) -> list[str]:
        return [f"torch {' and '.join(self.torch)}"] if self.torch else []

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        return {**asdict(self), "torch": list(self.torch), "untried": self.untried, "words": self.words}


def _days(since: float | None, until: float | None) -> str:
    days = [datetime.fromtimestamp(at).strftime("%Y-%m-%d") for at in (since, until) if at]
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def proof(trace: Trace) -> Proof:
    """What re-executions said of the steps of `trace`: of a branch, of its own. Raise DamageError."""
    first, end = trace.first_step, trace.steps
    known = Proof(max(0, end - first))
    counts = dict.fromkeys(_KINDS, 0)
    lost, times, versions = [], [], []
    for kind, torch, count, step, since, until in trace.sql(_ASKED, [first, end]).fetchall():
        counts[kind if kind in counts else "unverifiable"] += count
        lost += [step] if kind == "diverged" else []
        times += [at for at in (since, until) if at and at < float("inf")]
        versions += [torch] if torch and torch not in versions else []
    return Proof(
        known.steps,
        **counts,
        first_diverged=min(lost, default=None),
        since=min(times, default=None),
        until=max(times, default=None),
        torch=tuple(versions),
    )


def changed(path: Path) -> int:
    """What is another number when verdicts came to the trace at `path`; 0 while there are none."""
    try:
        return (path / "verdicts").stat().st_mtime_ns
    except OSError:
        return 0


def keep(trace: Trace, verdicts: Iterable[tuple[int, str]], *, torch: str, way: str) -> Path | None:
    """Add verdicts, (step, kind) each, on steps of `trace` as it was opened; return the file, None for no rows.

    `torch`: the version that ran them, `way`: what asked (verify, replay, hindsight). That a step could not be judged does
    not take the place of a verdict that it has. Raise OSError.
    """
    rows = list(verdicts)
    if any(kind == "unverifiable" for _, kind in rows):
        judged = {k for (k,) in trace.sql("select step from _verdicts").fetchall()}
        rows = [(k, kind) for k, kind in rows if kind != "unverifiable" or k not in judged]
    if not rows:
        return None
    columns = ("step", "session", "verdict", "time", "torch", "way")
    now = time.time()
    whole = zip(*((k, trace.session_of(k), kind, now, torch, way) for k, kind in rows), strict=True)
    fresh = pa.table({n: pa.array(v, addenda.VERDICTS.field(n).type) for n, v in zip(columns, whole, strict=True)})
    old = [file for file in addenda.files(trace.path) if file.parent.name == "verdicts"]
    if len(old) < _MANY:
        return addenda.add_verdicts(trace.path, fresh)
    read = {file: table for file in old if (table := _rows(file)) is not None}
    written = addenda.add_verdicts(trace.path, fresh, _newest(pa.concat_tables(read.values())), read)
    for file in read:
        _remove(file, now)
    return written


def _newest(rows: pa.Table) -> pa.Table:
    """The newest row of each step of each session."""
    order = np.argsort(rows["generation"].to_numpy(), kind="stable")[::-1]
    keys = np.stack([rows["step"].to_numpy(), rows["session"].fill_null(-1).to_numpy()], axis=1)
    _, first = np.unique(keys[order], axis=0, return_index=True)
    return rows.take(order[first])


def _rows(file: Path) -> pa.Table | None:
    """The rows of a file; None where it is damaged: then it stays, and is named."""
    try:
        return addenda.verdict_rows(file)
    except (DamageError, pa.ArrowException, KeyError):
        return None


def _remove(file: Path, now: float) -> None:
    """Take away a file whose rows another has; one that a reader may have just listed stays until the next time."""
    with suppress(OSError):
        if file.stat().st_mtime < now - _A_WHILE:
            file.unlink()
            file.with_suffix(".json").unlink()
