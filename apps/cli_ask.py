"""Verbs that ask a trace about its past: until, hindsight, branch, diff, doctor.

Room: apps. May touch: what `apps.cli` may.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import click

from apps.chart import Line, line, save, text
from apps.cli_replay import StepRange, set_out
from apps.terminal import as_json, counter, print_json, print_table
from apps.trust import asks_first, check
from tracer.errors import UsageError

_trace = click.argument("trace", type=click.Path(path_type=Path))
_anyway = click.option(
    "--anyway", is_flag=True, help="Go on where this machine or its versions differ from the recorded ones."
)
_trust = click.option("--trust", is_flag=True, help="With --reexecute: even what you did not record on this machine.")
_COLUMNS = 8


class Stride(click.ParamType):
    """`A:B` or `A:B:S`: the steps from A up to, not including, B, every S-th."""

    name = "A:B:S"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None, int]:
        """Return (A, B, S), None where left out."""
        text, _, stride = str(value).rpartition(":") if str(value).count(":") == 2 else (str(value), "", "1")
        first, last = StepRange().convert(text, param, ctx)
        if not stride.isdigit() or int(stride) < 1:
            self.fail(f"{value!r} is not a range of steps such as 100:200:10", param, ctx)
        return first, last, int(stride)


class Setting(click.ParamType):
    """`name=value`: a number, true, false, none, a quoted text, or a factor such as 0.5x."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return (name, value)."""
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        known = {"true": True, "false": False, "none": None}
        if text.lower() in known:
            return name, known[text.lower()]
        try:
            return name, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return name, text


@click.command()
@_trace
@click.argument("condition")
@click.option(
    "--from", "start", type=click.IntRange(min=0), metavar="K", help="Where to start. Default: an end of the run."
)
@click.option("--backward", is_flag=True, help="Search back from there: the last step at which it holds.")
@click.option("--lasting", is_flag=True, help="The first step from which on it holds to the end.")
@_anyway
@as_json
@asks_first
def until(  # noqa: PLR0917  click passes options by name
    trace: Path, condition: str, start: int | None, backward: bool, lasting: bool, anyway: bool, as_json: bool
) -> int:
    """Find the first step of TRACE at which CONDITION holds, such as "min(bcl.win_rate) < 0.01".

    A name is a column of steps, a metric, a capture (bcl.win_rate), a tensor (encoder.weight) or a gradient
    (grad.encoder.weight). What was recorded is read at once; for the rest the recorded program is run. Exit code 1
    where it never holds.
    """
    from replay import until as search

    found = search(trace, condition, start=start, backward=backward, lasting=lasting, anyway=anyway)
    if as_json:
        print_json({"condition": condition, "step": found})
    else:
        click.echo(f"step {found}" if found is not None else f"{condition} never holds there")
    return int(found is None)


@click.command()
@_trace
@click.argument("function", metavar="FILE.py:NAME")
@click.option("--steps", type=Stride(), help="Only these steps. Default: all.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the work.",
)
@click.option("--scheduler", metavar="ADDRESS", help="The Dask cluster whose workers share it.")
@_anyway
@as_json
@asks_first
def hindsight(  # noqa: PLR0917  click passes options by name
    trace: Path,
    function: str,
    steps: tuple[int | None, int | None, int] | None,
    workers: int,
    scheduler: str | None,
    anyway: bool,
    as_json: bool,
) -> None:
    """Ask a function (file.py:name, or module:name) of every past step of TRACE; its answers become metrics.

    It gets the step (.model .batch .state .next_state .captures .grads .loss) and returns {name: number or array}.
    Where stored tensors are not enough, the recorded program is run again.
    """
    if scheduler is None:
        set_out(trace)
    from replay import hindsight as ask
    from tracer import open_trace

    with open_trace(trace) as opened:
        first, last, stride = steps or (None, None, 1)
        wanted = range(opened.first_step if first is None else first, opened.steps if last is None else last, stride)
        done = ask(
            opened,
            function,
            steps=wanted,
            workers=workers,
            scheduler=scheduler,
            anyway=anyway,
            progress=counter("steps answered"),
        )
    if as_json:
        print_json({"source": done.source, "steps": done.steps, "verdicts": done.verdicts, **done.scalars})
        return
    names = [*done.scalars][:_COLUMNS]
    rows = [[int(k), *(done.scalars[n][i] for n in names)] for i, k in enumerate(done.steps)]
    print_table(["step", *names], rows if len(rows) <= 24 else rows[:: max(1, len(rows) // 12)])
    told = ", ".join(f"{count} {kind}" for kind, count in done.verdicts.items())
    click.echo(f"{len(done.steps)} steps ({told}), in SQL: metrics where source = '{done.source}'")


@click.command()
@_trace
@click.option("--at", type=click.IntRange(min=0), required=True, metavar="K", help="The state to branch from.")
@click.option(
    "--set", "settings", type=Setting(), multiple=True, help="Change this first: optimizer.lr=0.5x, bcl.coupled=false."
)
@click.option("--seed", type=int, help="Seed the random generators anew.")
@click.option("--script", type=click.Path(path_type=Path), help="Run this source instead; K must be a keyframe then.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many. Default: all that were recorded; more than that run on beyond.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the branch goes. Default: runs/TRACE-branch-N.")
@_anyway
@as_json
@asks_first
def branch(  # noqa: PLR0917  click passes options by name
    trace: Path,
    at: int,
    settings: tuple[tuple[str, Any], ...],
    seed: int | None,
    script: Path | None,
    steps: int | None,
    out: Path | None,
    anyway: bool,
    as_json: bool,
) -> None:
    """Run on from state K of TRACE with something changed, on the recorded batches, into a new trace.

    This runs the recorded program. Its first step is re-executed unchanged before: the control.
    """
    set_out(trace)
    from replay import branch as branch_off
    from tracer.launch import free_path

    target = out or free_path(Path("runs"), f"{trace.name}-branch")
    done = branch_off(trace, target, at=at, set=dict(settings), steps=steps, seed=seed, script=script, anyway=anyway)
    if as_json:
        print_json({**vars(done), "control": done.control.as_dict()})
        return
    click.echo(f"control: step {at} of the parent {done.control.kind}")
    click.echo(f"branched {done.path}: {done.steps} steps from {at}" + (f" ({done.note})" if done.note else ""))


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw how they part, as .svg or .png.")
@click.option("--reexecute", is_flag=True, help="Run both programs for the weights just after, if none were stored.")
@_trust
@as_json
def diff(a: Path, b: Path, *, plot: Path | None, reexecute: bool, trust: bool, as_json: bool) -> int:
    """Say where two runs part, and what parts first: data, randomness, hyperparameters, loss, gradient or state.

    Exit code 1 where they differ.
    """
    from replay import diff as compare

    for trace in (a, b) if reexecute else ():
        check(trace, trust=trust)
    found = compare(a, b, reexecute=reexecute)
    drawn, unit = _growth(found)
    if plot is not None:
        if drawn is None:
            raise UsageError("there is no growth to draw: the runs are the same, or too little of them is known")
        save(drawn, plot, title=f"{a.name} and {b.name}", unit=unit)
    if as_json:
        print_json({**found.as_dict(), "same": found.same})
    else:
        _show_diff(found, reexecuted=reexecute)
    return int(not found.same)


def _show_diff(found: Any, *, reexecuted: bool) -> None:
    for name, (one, other) in found.environment.items():
        click.echo(f"environment: {name}: {one} | {other}")
    for name, lines in found.sources.items():
        click.echo("\n".join([f"source: {name}", *(f"  {line}" for line in lines[:12])]))
    if found.note:
        click.echo(f"note: {found.note}")
    if found.same:
        click.echo(f"steps {found.first}:{found.end}: {found.detail}")
        return
    click.echo(f"the runs part at step {found.step}, first in: {found.kind}\n  {found.detail}")
    if found.tensors:
        rows = [[t.name, f"{t.elements} of {t.size}", t.max_ulp, t.max_abs] for t in found.tensors]
        print_table(["tensor", "elements that differ", "by up to ULP", "by up to"], rows)
    elif not reexecuted:
        click.echo("  which tensors, and by how much, is not stored: --reexecute runs both programs for it")
    print_table(["step", "distance of weights", "loss of A", "loss of B"], found.growth)
    drawn, unit = _growth(found)
    if drawn is not None:
        click.echo("\n".join([f"{unit}{', logarithmic' if drawn.logarithmic else ''}:", *text(drawn)]))


def _growth(found: Any) -> tuple[Line | None, str]:
    """What is drawn of how the runs part: the weights' distance where it is known, else the losses'."""
    drawn = line([(row[0], row[1]) for row in found.growth])
    if drawn is not None:
        return drawn, "distance of the weights"
    return line([(row[0], abs(row[2] - row[3])) for row in found.growth]), "difference of the losses"


@click.command()
@_trace
@click.option("--reexecute", is_flag=True, help="Run the recorded program again for weights that were not stored.")
@_trust
@as_json
def doctor(trace: Path, *, reexecute: bool, trust: bool, as_json: bool) -> int:
    """Look for what is wrong with the run in TRACE: its numbers, gradients, features, data and modes.

    Of a run that should go on, the first broken link from the process to the chart comes first.

    Each finding has its evidence, a query that shows it, and what to do. Exit code 1 where there is one; a healthy run has
    none.
    """
    from apps.doctor import examine
    from apps.doctor_live import live_findings
    from tracer import open_trace

    if reexecute:
        check(trace, trust=trust)
    with open_trace(trace) as opened:
        found = [*live_findings(opened), *examine(opened, reexecute=reexecute)]
    if as_json:
        print_json([vars(finding) for finding in found])
        return int(bool(found))
    for finding in found:
        where = "the whole run" if finding.step is None else f"step {finding.step}"
        click.echo(f"{finding.kind}, {where}: {finding.evidence}\n  see: {finding.query}\n  do:  {finding.advice}")
    if not found:
        click.echo("nothing is wrong that the audits know of")
    return int(bool(found))


VERBS = (until, hindsight, branch, diff, doctor)
