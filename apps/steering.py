"""The live runs behind an app: their control channels, held by lease, so that a run never hangs on an app that is gone. # S4.1

Room: apps. May touch: the control channels of the runs it is asked for. Any thread may ask; one at a time is answered.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tracer.control import Control
from tracer.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WAIT = 10.0
State = dict[str, Any]


class Steering:
    """Connections by the trace's path, made when first needed and again when they were lost."""

    def __init__(self) -> None:
        """Nothing is connected yet."""
        self._open: dict[Path, Control] = {}
        self._lock = threading.Lock()

    def pause(self, path: Path, *, wait: float = WAIT) -> State:
        """Hold the run until it is resumed, or let go of, or this process ends. Raise ControlError.

        `wait`: for so many seconds at most, until its step is over.
        """
        return self._ask(path, lambda run: run.pause(lease=True, wait=wait))

    def keep(self, path: Path) -> State:
        """Hold the run by hand: it stays so when this process ends. Raise ControlError."""
        return self._ask(path, lambda run: run.pause(wait=0.0))

    def resume(self, path: Path) -> State:
        """Let the run go on. Raise ControlError."""
        return self._ask(path, lambda run: run.resume())

    def step(self, path: Path, steps: int = 1, *, wait: float = WAIT) -> State:
        """Let the paused run make `steps` steps. Raise ControlError, UsageError where it is not paused."""
        return self._ask(path, lambda run: run.step(steps, wait=wait))

    def stop(self, path: Path) -> State:
        """End the run. Raise ControlError."""
        return self._ask(path, lambda run: run.stop())

    def set(self, path: Path, changes: State) -> State:
        """Change hyperparameters of the paused run. Raise ControlError, UsageError, NameUnknownError."""
        return self._ask(path, lambda run: run.set(changes))

    def state(self, path: Path) -> State:
        """The run's state, as `Control.state` gives it. Raise ControlError."""
        return self._ask(path, lambda run: run.state())

    def keys(self, path: Path) -> dict[str, list[dict[str, Any]]]:
        """What can be peeked of the paused step, as `Control.keys` says it. Raise ControlError, UsageError."""
        return self._ask(path, lambda run: run.keys())

    def peek(self, path: Path, what: str, names: list[str] | None = None) -> dict[str, Any]:
        """Weights, grads or captures of the paused step. Raise ControlError, UsageError, MissingDataError."""
        return self._ask(path, lambda run: run.peek(what, names))

    def batch(self, path: Path) -> Any:
        """The batch of the paused step, as it was fed. Raise ControlError, UsageError, MissingDataError."""
        return self._ask(path, lambda run: run.batch())

    def _ask(self, path: Path, question: Callable[[Control], Any]) -> Any:
        with self._lock:
            run = self._answering(path)
            try:
                return question(run)
            except ControlError:
                self._forget(path)
                raise

    def _answering(self, path: Path) -> Control:
        """A connection that answers: the known one, else a new one. A verb itself is never sent twice."""
        known = self._open.get(path)
        if known is not None:
            try:
                known.ping()
            except ControlError:
                self._forget(path)
            else:
                return known
        return self._connect(path)

    def release(self, path: Path) -> None:
        """Let go of the run at `path`: where nobody else holds it, it goes on."""
        with self._lock:
            self._forget(path)

    def _connect(self, path: Path) -> Control:
        run = self._open[path] = Control(path)
        return run

    def _forget(self, path: Path) -> None:
        run = self._open.pop(path, None)
        if run is not None:
            run.close()

    def close(self) -> None:
        """End all connections: runs that are held by them only go on."""
        with self._lock:
            for path in list(self._open):
                self._forget(path)
