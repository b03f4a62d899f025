"""What a recording keeps in files/, made without one: a log, what was read of a changed file, standard input, variables."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from tracer import beside, files, manifest, variables

if TYPE_CHECKING:
    from pathlib import Path

READ = b"what the run wrote itself\n"
HEARD = [b"three\n", b"lines of\nanswers\n"]


def keep_files(trace: Path, work: Path, *, ended: bool = True) -> int:
    """Give session 0 of `trace` a folder files/, as a run in `work` would; return its position.

    Not `ended`: as one that was killed leaves it, of which no sums are known.
    """
    work.mkdir()
    place = work / "notes.txt"
    lookups = variables.Lookups(trace, 0)
    lookups.found = variables.Variables({"FLAG": "3"}, ["TOKEN"], ["FLAG"])
    lookups.write()
    names = beside.begun(trace, 0)
    log = files.FileLog(trace, 0)
    for data in HEARD:
        log.heard(data)
    log.tell("open", (str(place), "w", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    place.write_bytes(READ)
    log.tell("open", (str(place), "r", os.O_RDONLY))
    log.tell("os.remove", (str(place),))
    position = log.position
    if ended:
        log.close()
    else:
        log._file.close()
    known = beside.sums(trace, 0) if ended else names
    manifest.amend(
        trace, lambda facts: facts.with_session(replace(facts.sessions[0], files=known, status=_status(ended)))
    )
    return position


def _status(ended: bool) -> str:
    return "finished" if ended else "crashed"
