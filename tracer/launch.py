"""`rewind record`: an unmodified script or module, run and recorded. # B1

Room: tracer. May touch: what `program` and `recorder` touch.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tracer import program, ranks, terminal_bar
from tracer.errors import ProgramError
from tracer.options import Options
from tracer.recorder import Recorder, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracer.manifest import Parent, Program

INTERRUPTED = 130


def record_script(
    target: str,
    argv: Sequence[str],
    *,
    module: bool = False,
    out: str | Path | None = None,
    append: bool = False,
    at: int | None = None,
    options: Options | None = None,
    overwrite: bool = False,
    parent: Parent | None = None,
    pause_at: int | None = None,
) -> int:
    """Run a script (or, with `module`, a module) under the recorder; return its exit code.

    Where torchrun has started it as one rank of several, it records into out/rank-<n>.
    `pause_at`: hold before this step (but not before the first). What it prints is printed, what it raises is shown as
    Python shows it. `out` defaults to runs/<name>-<first free number>.
    Raise ProgramError if it cannot be found or never trains, UsageError if `out` exists.
    """
    found = program.find(target, argv, module=module)
    path = _place(out, target if module else Path(target).stem)
    recorder = Recorder(
        path,
        options=options or Options(),
        program=found,
        append=append,
        at=at,
        overwrite=overwrite,
        parent=parent,
        pause_at=pause_at,
    )
    with _said_on_stderr():
        code = _run(found, recorder)
    if not recorder.trained and code == 0:
        raise ProgramError(
            f"{target} ended without training: no optimizer stepped, there is nothing to record (of processes that it starts"
            " itself nothing is; those of torchrun are: torchrun --no-python rewind record)"
        )
    return code


def _run(found: Program, recorder: Recorder) -> int:
    recorder.remember_start()
    recorder.start()
    recorder.live.progress.bar = terminal_bar.for_this_process()
    error: BaseException | None = None
    try:
        program.run(found)
    except BaseException as raised:  # noqa: BLE001  whatever ends the program ends the session first
        error = raised
        return _exit_code(raised)
    finally:
        recorder.close(status_of(error))
    return 0


def _place(out: str | Path | None, name: str) -> Path:
    if out is not None:
        return ranks.place(Path(out))
    return free_path(Path("runs"), name) if ranks.here() is None else ranks.place(ranks.shared_path(Path("runs"), name))


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)  # noqa: T201  as Python does
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    program.print_exception(error)
    return 1


@contextlib.contextmanager
def _said_on_stderr() -> Iterator[None]:
    """The recorder's few lines go to stderr meanwhile, once, where nobody else takes them."""
    log = logging.getLogger("rewind")
    if log.handlers:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("rewind: %(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def free_path(folder: Path, name: str) -> Path:
    """Return the first of folder/name-1, name-2 ... that does not exist."""
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"
