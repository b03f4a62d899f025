"""Verbs that write a trace: record, repair.

Room: apps. May touch: what `apps.cli` may.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.terminal import as_json, print_json

if TYPE_CHECKING:
    from tracer.flight import Flight


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the trace goes. Default: runs/SCRIPT-N, the first free N."
)
@click.option("--append", is_flag=True, help="Add a session to the trace at --out: a run that is resumed.")
@click.option("--at", type=click.IntRange(min=0), metavar="STEP", help="The step that an appended session starts from.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Keep the first batch of an epoch and every N-th; all can be replayed.",
)
@click.option(
    "--keyframe-every", type=click.IntRange(min=1), metavar="K", help="Steps between full states. Default: by cost."
)
@click.option("--detail", type=click.Choice(["metrics", "replay", "full"]), help="How much to keep. Default: replay.")
@click.option(
    "--weights/--no-weights", default=None, help="Weights at every step. Default: up to a million parameters."
)
@click.option(
    "--batch-mb",
    type=click.IntRange(min=0),
    metavar="MB",
    help="Store so much of batches that never come again (augmented at random), then how they were made. Default: 256.",
)
@click.option(
    "--slow-disk",
    type=click.Choice(["wait", "drop"]),
    default="wait",
    show_default=True,
    help="Where it does not keep up: the training waits, or weights and gradients of some steps are left out.",
)
@click.option("--pause-at", type=click.IntRange(min=1), metavar="STEP", help="Wait before this step: see pause, step.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Flight recorder: only the last N steps in full.")
@click.option(
    "--when", metavar="CONDITION", help='Write them when this holds, such as "isnan(loss)"; or at an exception.'
)
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as in `python -m`.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def record(
    script: str,
    args: tuple[str, ...],
    *,
    out: Path | None,
    append: bool,
    at: int | None,
    every: int,
    keyframe_every: int | None,
    detail: str | None,
    weights: bool | None,
    batch_mb: int | None,
    slow_disk: str,
    pause_at: int | None,
    last: int | None,
    when: str | None,
    module: bool,
) -> int:
    """Run SCRIPT ARGS... as Python would, and record its training.

    Everything after SCRIPT goes to it untouched; what it prints goes on being printed; its exit code is this one's.
    """
    if append and out is None:
        raise click.UsageError("--append needs --out: the trace to add a session to")
    if when is not None and last is None:
        raise click.UsageError("--when needs --last N: how many steps to keep")
    if last is not None and detail is not None:
        raise click.UsageError("--last keeps its steps in full and the rest as scalars: leave --detail out")
    from tracer.launch import record_script
    from tracer.options import Options

    options = Options(
        every=every,
        keyframe_every=keyframe_every,
        detail=detail,
        weights=weights,
        batch_bytes=None if batch_mb is None else batch_mb << 20,
        flight=None if last is None else _flight(last, when),
        slow_disk=slow_disk,
    )
    return record_script(
        script,
        list(args),
        module=module,
        out=out,
        append=append,
        at=at,
        options=options,
        pause_at=pause_at,
    )


def _flight(last: int, when: str | None) -> Flight:
    from tracer.condition import parse
    from tracer.flight import Flight

    return Flight(last, None if when is None else parse(when))


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@as_json
def repair(trace: Path, *, as_json: bool) -> None:
    """Bring the trace of a killed run in order, and say what was done."""
    from tracer.repair import repair as repair_trace

    done = repair_trace(trace)
    if as_json:
        print_json({"done": done})
    else:
        click.echo("\n".join(done) if done else "nothing to repair")


VERBS = (record, repair)
