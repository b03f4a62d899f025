"""The verb demo: the BCL autoencoder on real digits, recorded, replayed, verified.

Room: apps. May touch: what `apps.cli` may.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from apps.terminal import as_json, print_json, print_table, report_lines


@click.command()
@click.option(
    "--steps", type=click.IntRange(min=1), default=500, show_default=True, metavar="N", help="How long to train."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the trace goes. Default: runs/demo-N, the first free N."
)
@click.option("--decoupled", "mode", flag_value="decoupled", help="BCL, with the SOM apart from the gradient.")
@click.option("--control", "mode", flag_value="control", help="No BCL.")
@click.option("--mnist", type=click.Path(path_type=Path), metavar="ROOT", help="Train on the MNIST files under ROOT.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--no-browser",
    is_flag=True,
    help="End after the findings, without the app. NO_BROWSER=1 serves it and opens no browser.",
)
@as_json
def demo(
    steps: int,
    *,
    out: Path | None,
    mode: str | None,
    mnist: Path | None,
    seed: int,
    no_browser: bool,
    as_json: bool,
) -> int:
    """Train a small autoencoder with BCL on real digits, record it in full detail, replay, verify and look at it.

    Prints what was found: features alive, how alike weights and SOM targets are, SOM force against gradient.
    Then the app opens on it, until Ctrl-C. Exit code 1 where a step was not verified.
    """
    from apps.demo import run_demo
    from tracer.launch import free_path

    path = out or free_path(Path("runs"), "demo")
    # What the script prints must not come between a reader and the JSON.
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        done = run_demo(steps, path, mode or "coupled", mnist=mnist, seed=seed)
    if as_json:
        print_json({"trace": path, "mode": done.mode, "rows": done.rows, "verify": done.report.as_dict()})
    else:
        _show(done)
        if not no_browser:
            _open_app(done.path)
    return int(not done.report.verified)


def _show(done: Any) -> None:
    from apps.demo import columns, conclusions

    click.echo("\n".join(["", f"recorded {done.path}", *report_lines(done.report), ""]))
    print_table(*columns(done.rows))
    click.echo("\n".join(["", *conclusions(done), "", f'Ask it: rewind sql {done.path} "from steps limit 5"']))


def _open_app(path: Path) -> None:
    from apps.app import serve, show
    from apps.memory import frugal

    frugal()
    click.echo()
    show(serve([path]), browser=not os.environ.get("NO_BROWSER"))


VERBS = (demo,)
