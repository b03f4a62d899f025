"""How far a run is: status.json, written by the recorder at most twice a second, read by anyone. # S3

Three counts, each with its own name: in the file or epoch `batch_step` of `batch_total_steps` (and `current_file`), in
a queue `batch_number` of `batch_queue_size`, over all `current_step` of `total_steps`, where a resumed run counts from
its checkpoint. They are taken from the DataLoader's length and the `for` loops around it; what the program says by
`tracer.progress` wins. What is not known is null; NaN and infinities are written as strings, since JSON has none. The
file is replaced by one rename.
Room: tracer. May touch: status.json of its trace.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from tracer import frames, loops, process
from tracer.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tracer.errands import Errands
    from tracer.frames import UserFrame
    from tracer.manifest import SessionFacts
    from tracer.terminal_bar import TerminalBar

FIELDS = (
    "status",
    "current_step",
    "total_steps",
    "batch_step",
    "batch_total_steps",
    "batch_number",
    "batch_queue_size",
    "current_file",
    "epoch",
    "loss",
    "learning_rate",
    "steps_per_second",
    "eta_seconds",
    "updated_at",
)
_GIVEN = frozenset(FIELDS) - {"status", "updated_at", "current_step"}
INTERVAL = 0.5
LONGEST_INTERVAL = 1.5
COST_FACTOR = 300.0
STALE_SECONDS = 300.0
"""Of a run on another machine, whose process cannot be asked, so long without a word means that it is gone."""
_SMOOTHING = 0.3
_log = logging.getLogger("rewind")
Facts = dict[str, Any]


class Counts:
    """Works out the totals from the loops in which the training thread stands."""

    def __init__(self) -> None:
        self._before: tuple[int, list[loops.Loop]] | None = None
        self._place: int | None = None

    def steps_left(
        self, stack: list[UserFrame], driver: Any, step: int, batch: tuple[int | None, int | None]
    ) -> int | None:
        """Return how many steps are left after `step`, or None; `batch` is (done, total) of the driving DataLoader."""
        done, total = batch
        outer = loops.around(stack, driver)
        if outer is None:
            return self._without_loader(loops.counted(loops.every(stack)), step)
        if done is None or total is None or not outer:
            return None
        return total - done + outer[0].left * total

    def _without_loader(self, found: list[loops.Loop], step: int) -> int | None:
        """The loop that makes the steps is the one that went on by one from one step to the next.

        The step's record is written in the pass after its own, so that pass is left, too.
        """
        before, self._before = self._before, (step, found)
        if before is not None and before[0] == step - 1:
            then = {(loop.which, loop.left) for loop in before[1]}
            went_on = [i for i, loop in enumerate(found) if (loop.which, loop.left + 1) in then]
            # Where an inner loop has just begun anew, the one around it went on, too: the innermost ever seen it is.
            self._place = min([*went_on, len(found) if self._place is None else self._place])
        place = self._place
        if place is None or place >= len(found):
            return None
        inner, outer = found[place], found[place + 1 : place + 2]
        if not outer or not outer[0].left:
            return inner.left + 1
        return None if inner.total is None else inner.left + 1 + outer[0].left * inner.total


class Progress:
    """Keeps status.json of one session."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, errands: Errands | None = None) -> None:
        """Of the trace at `path`; while it runs, the file is written as one of the `errands`, if there are any."""
        self._target = path / "status.json"
        self._clock = clock
        self._errands = errands
        self._due = -math.inf
        self._look_again = False
        self._counts = Counts()
        self._given: Facts = {}
        self._base: int | None = None
        self._base_step = 0
        self._batch_total: int | None = None
        self._left: tuple[int, int] | None = None
        self._window: tuple[float, int] | None = None
        self._rate: float | None = None
        self._header: Facts = {}
        self._failed = False
        self.bar: TerminalBar | None = None
        self.facts: Facts = dict.fromkeys(FIELDS)

    def given(self, fields: Facts, step: int) -> None:
        """Take what the program says at `step`; `current_step` goes on counting from there, other values stand."""
        for name in fields.keys() - _GIVEN - {"current_step"}:
            _log.warning("progress has no field %r; it has: %s", name, ", ".join(sorted(_GIVEN | {"current_step"})))
        if fields.get("current_step") is not None:
            self._base, self._base_step = int(fields["current_step"]), step
        self._given.update({k: v for k, v in fields.items() if k in _GIVEN})

    def stepped(self, header: Facts, driven_by: Callable[[], Any]) -> None:
        """A step is over; write where it is due. Called by the training thread, with the program's frames below.

        `driven_by` gives the DataLoader's iterator that drives the loop, if one does.
        """
        self._header = header
        now = self._clock()
        if now >= self._due or self._look_again:
            driver = driven_by()
            self._look_again = now >= self._due and driver is None
            started = self._clock()
            self._look(driver)
            self._measure(now)
            self.write("running")
            # On a slow disk less often, so that saying how far the run is costs it no half percent.
            self._due = now + min(max(INTERVAL, COST_FACTOR * (self._clock() - started)), LONGEST_INTERVAL)

    def _look(self, driver: Any) -> None:
        """Read the loops; without a DataLoader at two steps in a row, to see which of them makes the steps."""
        step = int(self._header["step"])
        if driver is not None:
            self._batch_total = _length(driver)
        stack = frames.user_frames(sys._getframe(2))
        stack += [user for user in frames.block() if all(user.frame is not known.frame for known in stack)]
        left = self._counts.steps_left(stack, driver, step, (self._batch_step(), self._batch_total))
        self._left = None if left is None else (step, left)

    def _batch_step(self) -> int | None:
        index = self._header.get("batch_index")
        return None if index is None or self._header.get("mode") != "loader" else int(index) + 1

    def _measure(self, now: float) -> None:
        step = int(self._header["step"]) + 1
        if self._window is None or step < self._window[1]:
            self._window = (now, step)
        elif now > self._window[0] and step > self._window[1]:
            rate = (step - self._window[1]) / (now - self._window[0])
            self._rate = rate if self._rate is None else self._rate + _SMOOTHING * (rate - self._rate)
            self._window = (now, step)

    def held(self, seconds: float) -> None:
        """The run was held so long: that was no training."""
        if self._window is not None:
            self._window = (self._window[0] + seconds, self._window[1])

    def write(self, status: str) -> None:
        """Write status.json now. A disk that refuses is told of once; training goes on."""
        self.facts = self._facts(status)
        if self.bar is not None:
            self.bar.show(self.facts)
        text = json.dumps({k: _strict(v) for k, v in self.facts.items()}, indent=1)
        if self._errands is None:
            self._replace(text)
        else:
            self._errands.run("status", lambda: self._replace(text))
            if status == "paused":
                self._errands.finish()  # Who asked for it is answered next.

    def _replace(self, text: str) -> None:
        temporary = self._target.with_name(f"status.json.{os.getpid()}")
        try:
            temporary.write_text(text)
            os.replace(temporary, self._target)
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.error("cannot write %s: %s", self._target, error)
            self._failed = True

    def _facts(self, status: str) -> Facts:
        header = self._header
        batch_step = self._batch_step()
        facts = dict.fromkeys(FIELDS) | {
            "status": status,
            "batch_step": batch_step,
            "batch_total_steps": self._batch_total if batch_step is not None else None,
            "epoch": header.get("epoch"),
            "loss": header.get("loss"),
            "learning_rate": header.get("lr"),
            "steps_per_second": self._rate,
        }
        if header:
            shift = 0 if self._base is None else self._base - self._base_step
            facts["current_step"] = int(header["step"]) + 1 + shift
            if self._left is not None:
                facts["total_steps"] = self._left[0] + 1 + self._left[1] + shift
        facts |= self._given
        if facts["eta_seconds"] is None:
            facts["eta_seconds"] = _eta(facts)
        return facts | {"updated_at": time.time()}


def _length(iterator: Any) -> int | None:
    try:
        return len(iterator)
    except Exception:  # noqa: BLE001  a sampler's __len__ is the user's code; without it there is no total
        return None


def _eta(facts: Facts) -> float | None:
    total, step, rate = facts["total_steps"], facts["current_step"], facts["steps_per_second"]
    if total is None or step is None or not rate or facts["status"] not in ("running", "paused"):
        return None
    return max(0.0, (total - step) / rate)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value


def read(path: Path, sessions: tuple[SessionFacts, ...]) -> Facts:
    """Return the fields of status.json as they stand, `status` being honest: a killed run is `crashed`. # S2.1

    All are there, null where unknown or where there is no status.json. Raise DamageError where it is no JSON.
    """
    facts: Facts = dict.fromkeys(FIELDS)
    try:
        found = json.loads((path / "status.json").read_bytes())
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError) as error:
        raise DamageError(f"{path / 'status.json'} is damaged: {error}", path=path) from None
    facts |= {k: v for k, v in found.items() if k in facts}
    for name in ("loss", "learning_rate"):
        if isinstance(facts[name], str):
            with contextlib.suppress(ValueError):
                facts[name] = float(facts[name])
    return facts | {"status": _status(facts, sessions)}


def _status(facts: Facts, sessions: tuple[SessionFacts, ...]) -> str | None:
    if not sessions:
        return facts["status"] or "empty"
    session = sessions[-1]
    standing = process.standing(session)
    if standing != "running":
        return standing
    elsewhere = session.host != socket.gethostname()
    if elsewhere and time.time() - (facts["updated_at"] or session.started) > STALE_SECONDS:
        return "crashed"
    return facts["status"] if facts["status"] == "paused" else "running"
