"""The flight recorder: the last N steps in full in memory, written when something happens; the rest as scalars. # B7

A step's record waits among the last N. When it is pushed out it is written light: scalars and 1-D captures, no batch, no weights, no
gradients. When the condition comes to hold, at an exception, or at SIGUSR1, all that waits is written in full, keyframes among it,
so that these steps can be replayed. What waits in memory when the process is killed is lost.
Room: tracer. May touch: tail/ of its trace; SIGUSR1 of the process, while it records.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.condition import Condition, Recent, match, parse
from tracer.errors import NameUnknownError, UsageError
from tracer.journal import Journal
from tracer.tail import checksum

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracer.errands import Errands
    from tracer.journal import Later
    from tracer.tail import Buffer

MOST = 1 << 30
"""Bytes that may wait in memory: where N steps are more, fewer are kept, and it is said."""
_HEAVY = ("batch", "inline", "made", "rng", "extras", "skipped", "trailing")
_log = logging.getLogger("rewind")
Section = tuple[str, "list[bytes]", "str | None"]


@dataclass(frozen=True)
class Flight:
    """Keep the last `last` steps; write them `when` a condition comes to hold (None: at an exception or a signal only)."""

    last: int
    when: Condition | None = None


def flight_of(last: int | None, when: str | None, detail: str | None = None) -> Flight:
    """Return the flight recorder that was asked for. Raise UsageError."""
    if last is None:
        raise UsageError("`when` says when the last steps are written: say with `last` how many")
    if last < 1:
        raise UsageError(f"last={last}: keep at least the last step")
    if detail is not None:
        raise UsageError("the last steps are kept in full and the rest as scalars: leave the detail out")
    return Flight(last, None if when is None else parse(when))


@dataclass(frozen=True)
class _Held:
    """A record that waits."""

    header: dict[str, Any]
    sections: list[Section]
    size: int


class FlightJournal(Journal):
    """A journal that holds steps and keyframes back."""

    def __init__(
        self, path: Path, session: int, first_row: int, first_step: int, errands: Errands, *, flight: Flight
    ) -> None:
        """As Journal."""
        self._flight = flight
        self._held: deque[_Held] = deque()
        self._steps_held = self._bytes_held = 0
        self._recent = Recent(flight.when) if flight.when is not None else None
        self._held_before = False
        self._asked = self._told = False
        self._before: Any = None
        super().__init__(path, session, first_row, first_step, errands)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "_asked", True))

    def layout(self, header: dict[str, Any], *, every_step: bool) -> None:
        """A new layout: what waits was of the old one."""
        self._drain(full=False)
        super().layout(header, every_step=every_step)

    def append(self, header: dict[str, Any], sections: Sequence[tuple[str, Sequence[Buffer], str | None]] = ()) -> bool:
        """Hold a keyframe back; write what is neither keyframe nor step."""
        if header["kind"] == "keyframe":
            self._hold(header, sections)
            return True
        return super().append(header, sections)

    def step(
        self,
        header: dict[str, Any],
        sections: Sequence[tuple[str, Sequence[Buffer], str | None]],
        later: Later | None = None,
    ) -> bool:
        """Hold a step back; write the oldest light, or all of them in full where the moment has come."""
        assert later is None, "keyframes are held back as steps are"
        self._hold(header, sections)
        while self._steps_held > self._flight.last or (self._bytes_held > MOST and self._steps_held > 1):
            self._tell_if_short()
            self._let_go(full=False)
        if self._moment(header, self._held[-1].sections):
            self._write_all(header)
        return self.failure is None

    def _hold(self, header: dict[str, Any], sections: Sequence[tuple[str, Sequence[Buffer], str | None]]) -> None:
        copied = [(name, [bytes(b) for b in buffers], check) for name, buffers, check in sections]
        size = sum(len(b) for _, buffers, _ in copied for b in buffers)
        self._held.append(_Held(header, copied, size))
        self._bytes_held += size
        self._steps_held += header["kind"] != "keyframe"

    def _moment(self, header: dict[str, Any], sections: list[Section]) -> bool:
        asked, self._asked = self._asked, False
        if self._recent is None:
            return asked
        found = {name: (buffers, check) for name, buffers, check in sections}
        holds = self._recent.holds(lambda name: _value(name, header, found))
        comes, self._held_before = holds and not self._held_before, holds
        return comes or asked

    def _write_all(self, header: dict[str, Any]) -> None:
        count = self._steps_held
        self._drain(full=True)
        why = self._flight.when.text if self._flight.when is not None and self._held_before else "SIGUSR1"
        detail = f"{why}: the last {count} steps written in full"
        event = {"kind": "event", "step": header["step"], "event": "flight", "detail": detail, "time": time.time()}
        super().append(event)
        _log.info("step %d: %s", header["step"], detail)

    def _drain(self, *, full: bool) -> None:
        while self._held:
            self._let_go(full=full)

    def _let_go(self, *, full: bool) -> None:
        held = self._held.popleft()
        self._bytes_held -= held.size
        if held.header["kind"] == "keyframe":
            if full:
                super().append(held.header, held.sections)
            return
        self._steps_held -= 1
        header, sections = (held.header, summed(held.sections)) if full else light(held.header, held.sections)
        super().step(header, sections)

    def _tell_if_short(self) -> None:
        if self._bytes_held > MOST and not self._told:
            self._told = True
            _log.warning(
                "the flight recorder keeps %d steps, not %d: they fill %d MB",
                self._steps_held,
                self._flight.last,
                MOST >> 20,
            )

    def close(self, status: str) -> None:
        """End the session: after an exception what waits is written in full, else light."""
        self._drain(full=status != "finished")
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        super().close(status)


def summed(sections: list[Section]) -> list[Section]:
    """Add the sum that the gradients were held without."""
    return [(name, parts, checksum(parts) if name == "grads" else check) for name, parts, check in sections]


def light(header: dict[str, Any], sections: list[Section]) -> tuple[dict[str, Any], list[Section]]:
    """Return a step's record without batch, randomness, weights, gradients and captures of more than one dimension."""
    found = {name: (buffers, check) for name, buffers, check in sections}
    kept, captures = [], []
    for i, described in enumerate(header["captures"]):
        if len(described["shape"]) == 1:
            kept.append((f"capture{len(captures)}", *found[f"capture{i}"]))
            captures.append(described)
    slim = {key: value for key, value in header.items() if key not in _HEAVY}
    return {**slim, "batch": None, "inline": [], "rng": None, "captures": captures}, kept


def _value(name: str, header: dict[str, Any], sections: dict[str, tuple[list[bytes], Any]]) -> Any:
    """The value of `name` in a step's record; NaN, which no comparison holds for, where it has none."""
    direct = header["logs"].get(name, header.get(name))
    if isinstance(direct, (int, float)):
        return float(direct)
    scalars = {key: value for key, value in {**header["logs"], **header}.items() if isinstance(value, (int, float))}
    captured = {d["key"]: (i, d) for i, d in enumerate(header["captures"]) if hasattr(np, d["dtype"])}
    try:
        key = match(name, [*scalars, *captured])
    except NameUnknownError:  # several go by that name: which is meant, nobody knows
        return float("nan")
    if key in scalars:
        return float(scalars[key])
    if key not in captured:
        return float("nan")
    i, described = captured[key]
    data = b"".join(sections[f"capture{i}"][0])
    return np.frombuffer(data, np.dtype(described["dtype"])).reshape(described["shape"])
