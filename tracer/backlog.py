"""What waits to be written: steps that are over, and what belongs between them, in order; a thread writes it.

Right after a step of training nothing of the writer's code and data is in the processor's caches: one record then costs three
times what it costs next to others. So short steps wait for one another, a hundredth of a second, and are written while a
backward pass computes, when the training thread needs no interpreter. Where no step follows (a validation, say) the thread
looks by itself.
Room: tracer. May touch: one thread of its own; what is written is the caller's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT = 0.01
"""So many seconds a step waits for others where backward passes follow."""
LOOK = 0.025
"""So often the thread looks by itself: no step waits longer."""
LIGHT = 1 << 16
"""Where more bytes wait they are written at the next backward pass."""
HEAVY = 8 << 20
"""Where more bytes wait, the training thread waits for the disk."""
_PATIENCE = 30.0
_log = logging.getLogger("rewind")


class Backlog:
    """A queue of things to write, and the thread that writes them."""

    def __init__(self) -> None:
        """The thread starts with the first thing to write."""
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._given = self._taken = 0
        self._since = 0.0
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread: threading.Thread | None = None
        self._over = False

    def add(self, write: Callable[[], None], nbytes: int = 0) -> None:
        """Let `write` be called after all that waits: it writes about `nbytes`, copied already, and must not raise."""
        if not self._waiting:
            self._since = time.perf_counter()
        self._waiting.append((write, nbytes))
        self._given += nbytes
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rewind-backlog", daemon=True)
            self._thread.start()
        if self._given - self._taken > HEAVY:
            self.drain()

    def nudge(self) -> None:
        """The interpreter is about to be free for a while: what has waited long enough is written meanwhile."""
        if self._waiting and (self._given - self._taken > LIGHT or time.perf_counter() - self._since > WAIT):
            self._call()

    def _call(self) -> None:
        with contextlib.suppress(RuntimeError):  # It was called already.
            self._wake.release()

    def drain(self, patience: float = -1) -> None:
        """Return when all that waits is written, or after `patience` seconds. A signal's handler may call it."""
        if not self._waiting:
            return
        done = threading.Lock()
        done.acquire()
        self._waiting.append((done.release, 0))
        self._call()
        if not done.acquire(timeout=patience):
            _log.error("steps that are over are not written yet: the disk does not answer")

    def _work(self) -> None:
        while not self._over:
            self._wake.acquire(timeout=LOOK)
            while self._waiting:
                write, nbytes = self._waiting[0]
                write()
                self._taken += nbytes
                self._waiting.popleft()

    def close(self) -> None:
        """Write all that waits, and end the thread."""
        self.drain(_PATIENCE)
        self._over = True
        self._call()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_PATIENCE)
