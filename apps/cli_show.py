"""Verbs that show a trace: app, export.

Room: apps. May touch: what `apps.cli` may, a port of this machine, and the file given with --out.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from apps.trust import check
from tracer.errors import UsageError


@click.command()
@click.argument("traces", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="P",
    help="Default: that of the last time, or a free one.",
)
@click.option(
    "--address", default="127.0.0.1", show_default=True, help="Another one lets other machines in, by the token."
)
@click.option(
    "--redraw",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Of a live run: redraw at most every S seconds.",
)
@click.option("--no-browser", is_flag=True, help="Open no browser, only serve. So does NO_BROWSER=1.")
@click.option("--trust", is_flag=True, help="Let the tab Replay run what you did not record here, too.")
def app(traces: tuple[Path, ...], *, port: int, address: str, redraw: float, no_browser: bool, trust: bool) -> None:
    """Look at TRACES in the browser: scrub through the steps, see images, features, forces, matrices, metrics.

    Of a directory (default: runs) all traces are listed, newest first. The address that is printed holds a token;
    without it nobody gets in. Ends with Ctrl-C. A run that goes on is followed, and can be paused and stepped.
    """
    from apps.memory import frugal

    frugal()  # before any thread has a heap of its own
    from apps.app import serve, show
    from tracer import origin

    if trust:
        origin.allow_all()
    try:
        served = serve(traces or (Path("runs"),), port=port, address=address, redraw=redraw)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {address}:{port}: {error.strerror or error}; choose another --port"
        ) from None
    show(served, browser=not (no_browser or os.environ.get("NO_BROWSER")))


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A file that does not exist yet.")
@click.option("--view", default="steps", show_default=True, help="steps, features, metrics, epochs, events ...")
@click.option("--state", type=click.IntRange(min=0), metavar="K", help="The weights of state K instead, as .npz.")
@click.option("--format", "form", type=click.Choice(["csv", "json", "parquet", "npz"]), help="Default: as --out ends.")
@click.option(
    "--trust", is_flag=True, help="Re-execute a state that was not stored, even of a trace you did not record here."
)
def export(trace: Path, *, out: Path, view: str, state: int | None, form: str | None, trust: bool) -> None:
    """Write a view of TRACE, or the weights of one state, to a file: CSV, JSON, Parquet or NPZ."""
    from apps.exports import encode, state_columns, view_columns
    from tracer import open_trace

    if out.exists():
        raise UsageError(f"{out} exists; nothing was overwritten: choose another --out", path=out)
    kind = form or out.suffix.lstrip(".") or "csv"
    if state is not None and kind != "npz":
        raise UsageError("weights are arrays of many shapes: export them as .npz")
    with open_trace(trace) as opened:
        if state is not None and not opened.has_state(state):
            check(trace, trust=trust)
        columns = view_columns(opened, view) if state is None else state_columns(opened, state)
    data = encode(columns, kind)
    with open(out, "xb") as file:
        file.write(data)
    click.echo(f"wrote {out}: {len(data)} bytes")


VERBS = (app, export)
