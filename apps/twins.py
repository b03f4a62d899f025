"""Runs opened once more, for the slow work that pages do in threads: one copy for all pages, one thread in it at a time.

A copy of its own for each page would cost each some 20 MB: what was read last, and the tables that SQL stands on.
Room: apps. May touch: opens traces, for reading; closes those that no page shows any more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from apps.recorded import Recorded


class Twins:
    """The copies by the trace's path."""

    def __init__(self) -> None:
        """None is open yet."""
        self._open: dict[Path, tuple[Recorded, int]] = {}
        self._lock = threading.Lock()

    def work(self, run: Recorded, generation: int, work: Callable[[Recorded], Any]) -> Any:
        """Return `work(copy)` of `run` as it was at `generation` or later; what `work` raises is raised."""
        with self._lock:
            return work(self._of(run, generation))

    def _of(self, run: Recorded, generation: int) -> Recorded:
        known = self._open.get(run.trace.path)
        if known is None:
            known = self._open[run.trace.path] = (run.twin(), generation)
        elif known[1] < generation:
            known[0].refresh()
            self._open[run.trace.path] = (known[0], generation)
        return known[0]

    def drop(self, paths: Iterable[Path]) -> None:
        """Close the copies at `paths`, after the work that is under way."""
        with self._lock:
            for path in paths:
                found = self._open.pop(path, None)
                if found is not None:
                    found[0].trace.close()

    def close(self) -> None:
        """Close all."""
        self.drop(list(self._open))
