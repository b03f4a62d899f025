"""One page's hand on a live run: its buttons, in a thread, and what only the paused process can tell. # S4.1

A verb returns at once: how far it has come is asked for until the run rests. What a run at a lower level of detail does
not store (weights, gradients, captures) is asked of the process while it is paused.
Room: apps. May touch: the live run, through `apps.steering`; one thread.
"""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tracer.errors import MissingDataError, RewindError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from apps.recorded import Recorded
    from apps.steering import Steering

log = logging.getLogger(__name__)
MOST_BYTES: Final = 256 << 20
ASK_BUSY: Final = 0.2
ASK_PAUSED: Final = 2.0
ASK_SILENT: Final = 3.0
_UNDER_WAY: Final = ("pausing", "stepping", "stopping")


@dataclass(frozen=True)
class Peeked:
    """What the paused process gave: step `step` is the last that it made; `weights` are of state `step` + 1, `before` of `step`."""

    step: int
    weights: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    grads: dict[str, Any] = field(default_factory=dict)
    captures: dict[str, Any] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    batch: Any = None
    """Nested as the loop got it; None where the trace has it; MissingDataError where nobody has."""
    too_large: int = 0
    """Bytes, where there was too much to ask for: then nothing else is there."""


class Pilot:
    """Tells and asks the run at one path. `post(work, done)` runs `work()` aside, then `done(result or RewindError)`."""

    def __init__(
        self, steering: Steering, path: Path, post: Callable[[Callable[[], Any], Callable[[Any], None]], None]
    ) -> None:
        """Nothing is asked yet."""
        self._steering, self._path, self._post = steering, path, post
        self.state: dict[str, Any] = {}
        """As `Control.state` gives it; empty while it is not known."""
        self.problem = ""
        self._asking = False
        self._asked = -1e9
        self._verbs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "pause": lambda _: steering.pause(path, wait=0.0),
            "keep": lambda _: steering.keep(path),
            "advance": lambda m: steering.step(path, int(m.get("steps") or 1), wait=0.0),
            "resume": lambda _: steering.resume(path),
            "stop": lambda _: steering.stop(path),
            "set": lambda m: steering.set(path, {str(m.get("name")): m.get("value")}),
        }

    def tell(self, message: dict[str, Any]) -> None:
        """Do what the page asks for; what is refused is said in `problem`."""
        verb = self._verbs.get(str(message.get("do")))
        if verb is not None:
            self.problem = ""
            self._post(lambda: verb(message), self._told)

    def _told(self, found: dict[str, Any] | RewindError) -> None:
        if isinstance(found, RewindError):
            self.problem = str(found)
        else:
            self.state = found
        self._asked = time.monotonic()

    def ask(self, status: str, silent: float) -> None:
        """Ask how the run stands, where that is due: often while it comes to rest, seldom while it is quiet."""
        under_way = self.state.get("status") in _UNDER_WAY
        wait = ASK_BUSY if under_way else ASK_PAUSED if status == "paused" else ASK_SILENT
        fresh = status == "paused" and not self.state
        wanted = under_way or status == "paused" or silent > ASK_SILENT
        if self._asking or not (wanted or self.state) or (not fresh and time.monotonic() - self._asked < wait):
            return
        if not wanted:
            self.state = {}
            return
        self._asking = True
        self._post(lambda: self._steering.state(self._path), self._answered)

    def _answered(self, found: dict[str, Any] | RewindError) -> None:
        self._asking, self._asked = False, time.monotonic()
        self.state = {} if isinstance(found, RewindError) else found

    def peek(self, run: Recorded, done: Callable[[Peeked], None]) -> None:
        """Ask the paused process for what the trace lacks of its last step; `done` where there was anything."""
        step, lacking = run.last, lacks(run, run.last)
        if not lacking:
            return

        def came(found: Peeked | RewindError | None) -> None:
            if isinstance(found, Peeked):
                done(found)

        self._post(lambda: peeked(self._steering, self._path, step, lacking), came)

    def forget(self) -> None:
        """The run is over, or another is looked at."""
        self.state, self.problem = {}, ""


def lacks(run: Recorded, step: int) -> list[str]:
    """Which of weights, before, grads, captures and batch the trace may lack of `step`."""
    if run.empty:
        return []
    found = [what for what, k in (("weights", step + 1), ("before", step)) if not run.trace.has_state(k)]
    try:
        run.trace.grads(step)
    except RewindError:
        found.append("grads")
    found += ["batch"] if run.trace.record(step).get("batch") is None or run.makes_batch(step) else []
    return [*found, *(["captures"] if run.trace.manifest.detail != "full" else [])]


def peeked(steering: Steering, path: Path, step: int, what: list[str]) -> Peeked | None:
    """What the paused process says of `step`; None where it has gone on meanwhile. Raise ControlError, UsageError."""
    if steering.state(path)["step"] != step + 1:
        return None
    keys = {name: found for name, found in steering.keys(path).items() if name in what}
    size = sum(_nbytes(entry) for found in keys.values() for entry in found)
    if size > MOST_BYTES:
        return Peeked(step, too_large=size)
    parts = {name: steering.peek(path, name) for name, found in keys.items() if found and name != "batch"}
    if "batch" in what:
        parts["batch"] = _batch(steering, path)
    if steering.state(path)["step"] != step + 1:
        return None
    dims = {e["name"]: tuple(e["dims"]) if e.get("dims") else None for e in keys.get("captures", ())}
    return Peeked(step, **parts, dims=dims)


def _batch(steering: Steering, path: Path) -> Any:
    try:
        return steering.batch(path)
    except MissingDataError as error:
        return error


def _nbytes(entry: dict[str, Any]) -> int:
    bits = "".join(c for c in entry["dtype"] if c.isdigit()) or "8"
    return math.prod(entry["shape"]) * max(1, int(bits) // 8)


class Aside:
    """Runs one thing after the other in a thread, and brings results to the page's turn."""

    def __init__(self, turn: Callable[[Callable[[], None]], None]) -> None:
        """`turn` has a function called when it is the page's turn."""
        self._turn = turn
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False

    def __call__(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `work()`, then `done(result or RewindError)`."""
        if self._closed:
            return
        self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="rewind-pilot")

        def whole() -> None:
            try:
                result = work()
            except RewindError as error:
                result = error
            except Exception as error:
                log.exception("a page's word to its run failed")
                result = RewindError(f"this failed, which is a bug of Rewind: {type(error).__name__}: {error}")
            if not self._closed:
                self._turn(lambda: done(result))

        self._worker.submit(whole)

    def close(self, last: Callable[[], None]) -> None:
        """Nothing more comes back; `last` is still run, after what was begun."""
        self._closed = True
        self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="rewind-pilot")
        self._worker.submit(last)
        self._worker.shutdown(wait=False)
