"""Which process wrote a session, and whether it still runs: a killed process is not live. # S2.1

Room: tracer. May touch: reads /proc.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.manifest import SessionFacts


def started(pid: int) -> float:
    """Return when a process started, in clock ticks since boot: with the pid it names one for good.

    0.0 where it does not run (one that has ended and is not yet reaped does not), or where there is no /proc.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return 0.0 if fields[0] in "ZX" else float(fields[19])


def standing(session: SessionFacts) -> str:
    """Return the session's status, `crashed` where it says that it runs and its process is gone.

    A process of another machine cannot be asked: its word is taken.
    """
    if session.status != "running" or session.host != socket.gethostname():
        return session.status
    return "running" if _is_alive(session.pid, session.pid_started) else "crashed"


def _is_alive(pid: int, pid_started: float) -> bool:
    if pid_started:
        return started(pid) == pid_started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
