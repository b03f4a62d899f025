"""Before a program is run that another machine recorded, the user is asked: replaying a trace runs what it holds.

Room: apps. May touch: reads trace.json of the trace it is given.
"""

from __future__ import annotations

import functools
import socket
import threading
from pathlib import Path  # noqa: TC003 -- click reads the annotations
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


_all = threading.Event()


def trust_all() -> None:
    """From here on this process may run the program of any trace it is given: `rewind app --trust`."""
    _all.set()


def check(trace: Path, *, trust: bool = False, how: str = "say --trust") -> None:
    """Raise UsageError where the trace comes from another machine and its program is not known to be trusted.

    `how` tells the user what to do, once they have looked at the program.
    """
    from tracer import manifest
    from tracer.errors import UsageError

    facts = manifest.read(trace)
    foreign = sorted({session.host for session in facts.sessions} - {socket.gethostname()})
    if trust or _all.is_set() or not foreign:
        return
    program = facts.program.path or facts.program.module or "a program"
    raise UsageError(
        f"{trace} was recorded on {', '.join(foreign)}, and this runs its program, {program}: look at {trace}/source,"
        f" then {how}",
        path=trace,
    )


def asks_first(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb that runs the program of its argument `trace` the flag --trust, without which it refuses a stranger's."""

    @click.option("--trust", is_flag=True, help="Run the program of a trace that another machine recorded.")
    @functools.wraps(verb)
    def checked(*, trust: bool, trace: Path, **options: Any) -> Any:
        # With --checksums nothing is run.
        check(trace, trust=trust or bool(options.get("checksums")))
        return verb(trace=trace, **options)

    return checked
