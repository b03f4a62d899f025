"""Verbs that re-execute a trace: replay, verify.

Room: apps. May touch: what `apps.cli` may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from apps.terminal import as_json, counter, print_json, report_lines, verdict_line
from apps.trust import asks_first

_trace = click.argument("trace", type=click.Path(path_type=Path))
_anyway = click.option(
    "--anyway", is_flag=True, help="Go on where this machine or its versions differ from the recorded ones."
)


def set_out(trace: Path) -> None:
    """The program of `trace` is about to be run again: begin to load what that needs while torch is loaded here."""
    from replay import home

    home.prepare(trace)


class StepRange(click.ParamType):
    """`A:B`: the steps from A up to, not including, B; either may be left out. `A` alone is that step."""

    name = "A:B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        """Return (A, B), None where left out."""
        first, colon, last = str(value).partition(":")
        try:
            start = int(first) if first else None
            stop = (int(last) if last else None) if colon else int(first) + 1
        except ValueError:
            self.fail(f"{value!r} is not a range of steps such as 100:200", param, ctx)
        return start, stop


@click.command()
@_trace
@click.option("--at", type=click.IntRange(min=0), required=True, metavar="K", help="The step to start from.")
@click.option(
    "--steps", type=click.IntRange(min=0), default=1, show_default=True, metavar="N", help="How many to re-execute."
)
@_anyway
@as_json
@asks_first
def replay(trace: Path, *, at: int, steps: int, anyway: bool, as_json: bool) -> int:
    """Start the recorded program again, put the state of step K in place, and re-execute N steps.

    This runs the recorded program. Each step is compared with what was recorded, bit for bit; exit code 1 where one
    was not verified.
    """
    set_out(trace)
    from replay import Session
    from replay.verify import keep

    verdicts: list[Any] = []
    with Session(trace, anyway=anyway) as session:
        session.seek(at)
        try:
            for verdict in session.running(steps):
                verdicts.append(verdict)
                if not as_json:
                    click.echo(verdict_line(verdict))
        finally:
            for note in keep(session.trace, verdicts, way="replay"):
                click.echo(note, err=True)
    if as_json:
        print_json({"at": at, "steps": len(verdicts), "verdicts": [verdict.as_dict() for verdict in verdicts]})
    return int(any(not verdict.verified for verdict in verdicts))


@click.command()
@_trace
@click.option("--steps", type=StepRange(), help="Only these steps. Default: all.")
@click.option("--checksums", is_flag=True, help="Run nothing: hold every file of the trace against its sums.")
@_anyway
@as_json
@asks_first
def verify(
    trace: Path, *, steps: tuple[int | None, int | None] | None, checksums: bool, anyway: bool, as_json: bool
) -> int:
    """Re-execute TRACE and prove it bit for bit, or name the first tensor that differs and the likely cause.

    This runs the recorded program, but with --checksums. Exit code 0 only where every step was verified.
    """
    if checksums:
        return _checksums(trace, as_json=as_json)
    set_out(trace)
    from replay import verify as verify_trace
    from tracer import open_trace

    with open_trace(trace) as opened:
        first, end = steps or (None, None)
        chosen = (opened.first_step if first is None else first, opened.steps if end is None else end)
        report = verify_trace(opened, chosen, anyway=anyway, progress=counter("re-executed"))
    if as_json:
        print_json(report.as_dict())
    else:
        click.echo("\n".join(report_lines(report)))
    return int(not report.verified)


def _checksums(trace: Path, *, as_json: bool) -> int:
    from tracer.damage import damages

    found = damages(trace)
    if as_json:
        print_json({"trace": str(trace), "damaged": found})
    else:
        click.echo("\n".join(found) if found else "every byte is as it was written")
    return int(bool(found))


VERBS = (replay, verify)
