"""The sealer as seen from the process that records: started at once, told to finish by the end of its standard input.

Room: tracer. May touch: one child process.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path

_log = logging.getLogger("rewind")
_ROOT = Path(__file__).resolve().parent.parent
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""glibc keeps what is freed, as the next state needs it again: a fifth of the sealer's time was the kernel's, for clearing pages."""


class Sealer:
    """A low-priority process that turns rolled tail files into segments while the run goes on."""

    def __init__(self, path: Path, session: int) -> None:
        """Start it; a machine that cannot is told so once, and the trace stays whole without it."""
        self._path = path
        command = [sys.executable, "-m", "tracer.sealer", str(path), "--session", str(session)]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=_ROOT, env={**os.environ, **_MEMORY}
            )
        except OSError as error:
            _log.warning("the sealer could not be started: %s; `rewind repair %s` seals later", error, path)
        _living.add(self)

    def forget(self) -> None:
        """In a forked child: the pipe must not be held open by it."""
        if self._process is not None and self._process.stdin is not None:
            os.close(self._process.stdin.fileno())
            self._process = None

    def finish(self) -> None:
        """Let it seal what is left, and wait for it."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        if process.wait() != 0:
            _log.warning("%s is whole but not sealed: `rewind repair %s` does it", self._path, self._path)


_living: weakref.WeakSet[Sealer] = weakref.WeakSet()


def _after_fork() -> None:
    for sealer in list(_living):
        sealer.forget()


os.register_at_fork(after_in_child=_after_fork)
