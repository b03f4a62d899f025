"""Before a program is run that this user did not record on this machine, they are asked: replaying a trace runs what it holds.

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
    """Raise UsageError where the trace lacks the user's mark (`tracer.origin`) and its program is not known to be trusted.

    `how` tells the user what to do, once they have looked at the program.
    """
    from tracer import manifest, origin
    from tracer.errors import UsageError

    facts = manifest.read(trace)
    if trust or _all.is_set() or origin.is_ours(facts):
        return
    foreign = sorted({session.host for session in facts.sessions} - {socket.gethostname()})
    whose = f"was recorded on {', '.join(foreign)}" if foreign else "lacks the mark of one that you recorded here"
    program = facts.program.path or facts.program.module or "a program"
    raise UsageError(
        f"{trace} {whose}, and this runs its program, {program}: look at {trace}/source, then {how}",
        path=trace,
    )


def asks_first(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb that runs the program of its argument `trace` the flag --trust, without which it refuses a stranger's."""

    @click.option("--trust", is_flag=True, help="Run the program of a trace that you did not record on this machine.")
    @functools.wraps(verb)
    def checked(*, trust: bool, trace: Path, **options: Any) -> Any:
        # With --checksums nothing is run.
        check(trace, trust=trust or bool(options.get("checksums")))
        return verb(trace=trace, **options)

    return checked
