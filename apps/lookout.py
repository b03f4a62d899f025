"""What stands out in the runs of an app: looked into once for all its pages, in a thread, on a copy that is closed after.

Room: apps. May touch: opens traces, for reading; one thread.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from apps.answers import Answer, Standout, answers, standouts
from apps.doctor import examine
from apps.recorded import Recorded
from tracer.errors import RewindError
from tracer.trace import open_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)
_KEPT: Final = 32


@dataclass(frozen=True)
class Found:
    """The answers of a run; `standouts` are what its doctor says, None while that is not known yet."""

    answers: tuple[Answer, ...] = ()
    standouts: tuple[Standout, ...] | None = None
    problem: str = ""


class Lookout:
    """What was found, by the run's path and its last step."""

    def __init__(self) -> None:
        """Nothing was looked into yet."""
        self._found: dict[tuple[Path, int], Found] = {}
        self._worker: ThreadPoolExecutor | None = None

    def look(self, run: Recorded, tell: Callable[[Found], None]) -> None:
        """Have `tell` called with what is found in `run`, from another thread, perhaps more than once: the last is whole."""
        self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="rewind-lookout")
        path, last, name = run.trace.path, run.last, run.name
        self._worker.submit(self._work, path, last, name, tell)

    def _work(self, path: Path, last: int, name: str, tell: Callable[[Found], None]) -> None:
        if (path, last) not in self._found:
            self._found[path, last] = self._looked(path, name, tell)
            while len(self._found) > _KEPT:
                del self._found[next(iter(self._found))]
        tell(self._found[path, last])

    def _looked(self, path: Path, name: str, tell: Callable[[Found], None]) -> Found:
        found = Found()
        try:
            with closing(open_trace(path)) as trace:
                found = Found(tuple(answers(Recorded(trace, name))))
                tell(found)
                return replace(found, standouts=tuple(standouts(examine(trace))))
        except RewindError as error:
            problem = str(error).removeprefix(f"{path}: ")
        except Exception as error:
            log.exception("looking into %s failed", path)
            problem = f"this failed, which is a bug of Rewind: {type(error).__name__}: {error}"
        return replace(found, standouts=(), problem=problem)

    def close(self) -> None:
        """Begin nothing new; what is under way ends by itself."""
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)
