"""Before a program is run that this user did not record on this machine, they are asked: replaying a trace runs what it holds.

Room: apps. May touch: reads trace.json of the trace it is given.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from pathlib import Path  # noqa: TC003 -- click reads the annotations
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_PARENTS = 100


def check(trace: Path, *, trust: bool = False, how: str = "say --trust") -> None:
    """Raise UsageError where the trace lacks the user's mark (`tracer.origin`) and its program is not known to be trusted.

    `how` tells the user what to do, once they have looked at the program.
    """
    from tracer import manifest, origin
    from tracer.errors import UsageError

    facts = manifest.read(trace)
    if trust:
        origin.allow(*_with_parents(trace))
    if origin.may_run(trace, facts):
        return
    foreign = sorted({session.host for session in facts.sessions} - {socket.gethostname()})
    whose = f"was recorded on {', '.join(foreign)}" if foreign else "lacks the mark of one that you recorded here"
    program = facts.program.path or facts.program.module or "a program"
    raise UsageError(
        f"{trace} {whose}, and this runs its program, {program}: look at {trace}/source, then {how}",
        path=trace,
    )


def _with_parents(trace: Path) -> list[Path]:
    """The trace, the one it branched off, and so on: a state of a branch may be its parent's."""
    from tracer import manifest
    from tracer.branched import find_parent
    from tracer.errors import RewindError

    found = [trace]
    with contextlib.suppress(RewindError):
        while (parent := manifest.read(found[-1]).parent) is not None and len(found) < _MOST_PARENTS:
            found.append(find_parent(found[-1], parent))
    return found


def asks_first(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb that runs the program of its argument `trace` the flag --trust, without which it refuses a stranger's."""

    @click.option("--trust", is_flag=True, help="Run the program of a trace that you did not record on this machine.")
    @functools.wraps(verb)
    def checked(*, trust: bool, trace: Path, **options: Any) -> Any:
        # With --checksums nothing is run.
        check(trace, trust=trust or bool(options.get("checksums")))
        return verb(trace=trace, **options)

    return checked
