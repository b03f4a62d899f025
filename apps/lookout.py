"""What stands out in the runs of an app: looked into once for all its pages, beside them.

Answers take a part of a second and are given in a thread. The doctor takes seconds and memory: it is asked in a process
of its own, `rewind doctor`, so that no page waits for it and nothing of it stays.
Room: apps. May touch: opens traces, for reading; one thread, one process at a time.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from analysis.finding import Finding
from apps.answers import Answer, Standout, answers, standouts
from apps.recorded import Recorded
from tracer.errors import RewindError, TraceError
from tracer.trace import open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._newest: dict[Path, int] = {}
        self._worker: ThreadPoolExecutor | None = None
        self._doctor: subprocess.Popen[str] | None = None
        self._closed = False

    def look(self, run: Recorded, tell: Callable[[Found], None]) -> None:
        """Have `tell` called with what is found in `run`, from another thread, perhaps more than once: the last is whole.

        Of a run that grows faster than it is looked into, what is found is that of its newest step that was asked for.
        """
        self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="rewind-lookout")
        self._newest[run.trace.path] = run.last
        self._worker.submit(self._work, run.trace.path, run.name, tell)

    def _work(self, path: Path, name: str, tell: Callable[[Found], None]) -> None:
        last = self._newest[path]
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
            return replace(found, standouts=tuple(standouts(self.examine(path))))
        except RewindError as error:
            problem = str(error).removeprefix(f"{path}: ")
        except Exception as error:
            log.exception("looking into %s failed", path)
            problem = f"this failed, which is a bug of Rewind: {type(error).__name__}: {error}"
        return replace(found, standouts=(), problem=problem)

    def examine(self, path: Path) -> list[Finding]:
        """What `rewind doctor` finds. Raise TraceError where it does not say."""
        command = [sys.executable, "-m", "apps.cli", "doctor", str(path), "--json"]
        given = os.environ.get("PYTHONPATH")
        house = os.pathsep.join([str(Path(__file__).parents[1]), *([given] if given else [])])
        with subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": house, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        ) as self._doctor:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._doctor.pid, 15)  # Behind the pages, and behind a training.
            if self._closed:
                self._doctor.kill()
            said, complaint = self._doctor.communicate()
        if not said.strip():
            raise TraceError(complaint.strip().rpartition("\n")[2] or "the doctor ended without a word", path=path)
        return [Finding(**one) for one in json.loads(said)]

    def close(self) -> None:
        """Begin nothing new, and end what is under way."""
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)
        if self._doctor is not None and self._doctor.poll() is None:
            self._doctor.kill()
