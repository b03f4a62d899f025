"""Verbs for a run that goes on: status, pause, step, resume, set, stop.

Room: apps. May touch: what `apps.cli` may, and the live run, through its control channel.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apps.terminal import as_json, jsonable, print_facts, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.control import Control

_trace = click.argument("trace", type=click.Path(path_type=Path))
_OVER = ("finished", "failed", "terminated", "crashed")
_SECOND = 1.0
PEEKED = ("batch", "weights", "before", "grads", "captures")


@click.command()
@_trace
@click.option("--follow", is_flag=True, help="Go on saying so, once a second, until the run is over.")
@as_json
def status(trace: Path, *, follow: bool, as_json: bool) -> None:
    """Say how far the run of TRACE is: also from another process, while it goes on. # S3.3

    With --follow and --json, one line of JSON each time.
    """
    from tracer import open_trace
    from tracer.lost import lost_steps, worded

    with open_trace(trace) as opened:
        facts, lost = opened.status(), lost_steps(opened)
    if lost:
        sys.stderr.write(f"rewind: lost, because they could not be written: steps {worded(lost)}\n")
    refused = _say_refused(trace, facts, "")
    if not follow:
        print_facts(facts, as_json=as_json)
        return
    while True:
        sys.stdout.write(_line(facts, as_json=as_json) + "\n")
        sys.stdout.flush()
        if facts["status"] in _OVER:
            return
        time.sleep(_SECOND)
        facts = _status(trace)
        refused = _say_refused(trace, facts, refused)


def _say_refused(trace: Path, facts: dict[str, Any], before: str) -> str:
    """Say, where it is news, that the disk takes nothing of a run that goes on: what it writes may not say so."""
    from tracer.control import Control
    from tracer.errors import RewindError

    found = ""
    if facts["status"] not in _OVER:
        with suppress(RewindError), Control(trace, timeout=2.0) as run:
            found = run.state().get("refused") or ""
    if found != before:
        again = "rewind: the disk takes what is recorded again\n"
        sys.stderr.write(f"rewind: refused, steps are being lost: {found}\n" if found else again)
    return found


def _status(trace: Path) -> dict[str, Any]:
    from tracer.manifest import read
    from tracer.progress import read as read_progress

    return read_progress(trace, read(trace).sessions)


def _line(facts: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(jsonable(facts), ensure_ascii=False)
    return " ".join([str(facts["status"]), *progress_words(facts)])


def progress_words(facts: dict[str, Any]) -> list[str]:
    """Return what is known of a run's progress, in words."""
    words = [
        _count("step", facts["current_step"], facts["total_steps"]),
        _count("batch", facts["batch_step"], facts["batch_total_steps"]),
        _count("queue", facts["batch_number"], facts["batch_queue_size"]),
        facts["current_file"] or "",
        _number("epoch", facts["epoch"], "d"),
        _number("loss", facts["loss"], ".5g"),
        _number("lr", facts["learning_rate"], ".3g"),
        f"{facts['steps_per_second']:.3g}/s" if facts["steps_per_second"] else "",
        f"ETA {_duration(facts['eta_seconds'])}" if facts["eta_seconds"] is not None else "",
    ]
    return [word for word in words if word]


def _count(name: str, done: int | None, total: int | None) -> str:
    if done is None:
        return ""
    return f"{name} {done}" if total is None else f"{name} {done}/{total}"


def _number(name: str, value: Any, form: str) -> str:
    return "" if value is None else f"{name} {value:{form}}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@click.command()
@_trace
@as_json
def pause(trace: Path, *, as_json: bool) -> None:
    """Pause the live run of TRACE at the end of its current step. # S4.1"""
    _tell(trace, lambda run: run.pause(wait=_PATIENCE), as_json=as_json)


@click.command()
@_trace
@click.argument("steps", type=click.IntRange(min=1), default=1)
@as_json
def step(trace: Path, *, steps: int, as_json: bool) -> None:
    """Let the paused run of TRACE make one step, or STEPS. # S4.1"""
    _tell(trace, lambda run: run.step(steps, wait=_PATIENCE), as_json=as_json)


@click.command()
@_trace
@as_json
def resume(trace: Path, *, as_json: bool) -> None:
    """Let the paused run of TRACE go on, whoever paused it. # S4.1"""
    _tell(trace, lambda run: run.resume(), as_json=as_json)


@click.command()
@_trace
@as_json
def stop(trace: Path, *, as_json: bool) -> None:
    """End the live run of TRACE at the end of its current step; what was recorded is whole. # S4.1"""
    _tell(trace, lambda run: run.stop(), as_json=as_json)


@click.command(name="set")
@_trace
@click.argument("changes", nargs=-1, required=True, metavar="NAME=VALUE...")
@as_json
def set_(trace: Path, *, changes: tuple[str, ...], as_json: bool) -> None:
    """Change hyperparameters of the paused run of TRACE, as in optimizer.lr=0.01 or optimizer.lr=0.5x.

    The change is in force from the next step on; it is part of the trace, and a replay makes it again.
    """
    wanted = dict(_change(text) for text in changes)
    _tell(trace, lambda run: run.set(wanted), as_json=as_json)


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r} is no NAME=VALUE")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


_PATIENCE = 600.0


def _tell(trace: Path, verb: Callable[[Control], dict[str, Any]], *, as_json: bool) -> None:
    from tracer.control import Control

    with Control(trace) as run:
        state = verb(run)
    if as_json:
        print_facts(state, as_json=True)
        return
    changes = f", to be set: {json.dumps(state['changes'])}" if state["changes"] else ""
    at = f"before step {state['step']}" if state["status"] == "paused" else f"step {state['step']}"
    sys.stdout.write(f"{state['status']}, {at}{changes}\n")


@click.command()
@_trace
@click.argument("what", type=click.Choice(PEEKED), required=False)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Write the arrays of WHAT to this NPZ file.")
@as_json
def peek(trace: Path, *, what: str | None, out: Path | None, as_json: bool) -> None:
    """Say what the paused run of TRACE holds of its last step, at full detail whatever it records. # S4.1

    WHAT is batch, weights (before: those that the step started from), grads or captures; with --out its arrays go to an NPZ file.
    """
    from tracer.control import Control
    from tracer.fed import facts_of

    if out is not None and what is None:
        raise click.UsageError(f"say what to write to {out}: {', '.join(PEEKED)}")
    with Control(trace) as run:
        known = run.keys()
        batch = _batch(run, trace) if what in (None, "batch") else {}
        known["batch"] = [facts_of(name, leaf) for name, leaf in batch.items()]
        if out is not None and what is not None:
            _write_arrays(out, batch if what == "batch" else run.peek(what))
    rows = [{"what": kind, **entry} for kind in PEEKED if what in (None, kind) for entry in known[kind]]
    if as_json:
        print_json(rows)
        return
    print_table(("what", "name", "dtype", "shape"), [[r["what"], r["name"], r["dtype"], r["shape"]] for r in rows])


def _batch(run: Control, trace: Path) -> dict[str, Any]:
    """The arrays of the paused step's batch: from its trace where that keeps batches, else from the process."""
    from tracer import open_trace
    from tracer.errors import MissingDataError
    from tracer.fed import leaves

    with open_trace(trace) as opened:
        try:
            return dict(leaves(opened.stored_batch(opened.steps - 1)))
        except MissingDataError:
            return run.peek("batch")


def _write_arrays(out: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    from apps.pictures import plain

    try:
        with open(out, "wb") as file:
            np.savez(file, **{name: np.asarray(plain(value)) for name, value in arrays.items()})
    except OSError as error:
        raise click.UsageError(f"cannot write {out}: {error.strerror}") from None


VERBS = (status, pause, step, resume, set_, stop, peek)
