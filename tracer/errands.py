"""Slow work on the disk that the training thread need not wait for: done beside it, in order, the latest of each kind.

Room: tracer. May touch: one thread of its own; what it does is the caller's.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Errands:
    """Runs what it is given in a thread that starts with the first errand and ends with `close`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Callable[[], None]] = {}
        self._busy = False
        self._over = False
        self._alive = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def run(self, kind: str, errand: Callable[[], None]) -> None:
        """Do `errand` soon; one of the same `kind` that has not begun is left out. It must not raise.

        After `close`, and in a forked child, it is done at once.
        """
        if self._over or os.getpid() != self._pid:
            errand()
            return
        with self._changed:
            self._waiting.pop(kind, None)
            self._waiting[kind] = errand
            self._changed.notify_all()
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="rewind-errands", daemon=True)
            self._alive = True
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    self._alive = False
                    self._changed.notify_all()
                    return
                kind = next(iter(self._waiting))
                errand = self._waiting.pop(kind)
                self._busy = True
            try:
                errand()
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def finish(self) -> None:
        """Wait until nothing is left to do."""
        if self._thread is not None and os.getpid() == self._pid:
            with self._changed:
                self._changed.wait_for(lambda: not self._waiting and not self._busy)

    def close(self) -> None:
        """Wait until nothing is left to do, and end the thread.

        A signal's handler may call it in the midst of `run`, which holds the lock that the thread needs: to wait for the
        condition gives it back whole, however often this thread has it; to wait for the thread alone would not.
        """
        thread, self._thread = self._thread, None
        mine = thread is not None and os.getpid() == self._pid and thread is not threading.current_thread()
        with self._changed:
            self._over = True
            self._changed.notify_all()
            if mine:
                self._changed.wait_for(lambda: not self._alive)
        if thread is not None and mine:
            thread.join()
