"""What lies in files/ beside the steps of a session: held against what trace.json, its log and its keyframes say of it.

`sums` are noted in trace.json, under its maker's mark, when the session ends (names only when it begins); a log proves its lines,
names the contents by their bytes, and sums up standard input; keyframes say how long the log was at the least.
Room: tracer. May touch: reads the folder files/ of the trace it is given.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from tracer import files, stdin, variables
from tracer.segments import proven

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tracer.manifest import SessionFacts

_CONTENT = re.compile("[0-9a-f]{32}|[0-9a-f]{64}")
_LOSSES = {
    ".jsonl": "which files the run read as they were then is not known any more, a replay reads them as they are now",
    ".stdin": "what the program read from standard input is lost",
    ".json": "a replay has the environment variables of its own shell",
}


def sums(trace: Path, session: int) -> dict[str, str]:
    """{name: sha256} of the files that a session has by itself: its log, its standard input, its variables."""
    return {file.name: _sum(file) for file in _own(trace, session) if file.exists()}


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def changed(trace: Path, facts: SessionFacts | None) -> set[str]:
    """The names of those of which trace.json, which bears its maker's mark, says other bytes: a replay does without them."""
    told = (facts.files or {}) if facts is not None else {}
    found = set()
    for name, digest in told.items():
        try:
            found |= {name} if digest not in (None, _sum(trace / "files" / name)) else set()
        except OSError:
            found.add(name)
    return found


def begun(trace: Path, session: int) -> dict[str, str | None]:
    """The names of those that will have to be there, whatever becomes of the session: {name: None}."""
    return {file.name: None for file in _own(trace, session) if file.exists()}


def _own(trace: Path, session: int) -> Iterable[Path]:
    return files.log_file(trace, session), files.stdin_file(trace, session), variables.file_of(trace, session)


def missing(trace: Path, facts: SessionFacts) -> Iterator[str]:
    """What trace.json names of a session's files and is not there, a line each."""
    for name in facts.files or {}:
        if not (trace / "files" / name).exists():
            yield _lost(trace / "files" / name, "is missing")


def of_session(trace: Path, facts: SessionFacts, position: int = 0) -> Iterator[str]:
    """All that is missing or not as it was written of a session's own files; `position`: see `damages`."""
    yield from missing(trace, facts)
    yield from _own_damages(trace, facts, position)


def damages(trace: Path, facts: SessionFacts, position: int) -> Iterator[str]:
    """What of its files is there and not as it was written, and all that is wrong with what was kept of the run's files.

    `position`: how many events its keyframes know of.
    """
    yield from _own_damages(trace, facts, position)
    yield from _contents(trace, files.events(trace, facts.session)[1])


def variables_lost(trace: Path, facts: SessionFacts) -> str | None:
    """In a line, that what the session looked up in its environment is not known any more."""
    name = variables.file_of(trace, facts.session).name
    return next((line for line in of_session(trace, facts) if f"{name} " in line), None)


def _own_damages(trace: Path, facts: SessionFacts, position: int) -> Iterator[str]:
    yield from _differing(trace, facts)
    _, events, _, problem = files.told(trace, facts.session)
    log, typed = files.log_file(trace, facts.session), files.stdin_file(trace, facts.session)
    if not _is_told(facts, log):
        yield from _log(facts, log, len(events), position, problem)
    if not _is_told(facts, typed) and len(stdin.read(trace, facts.session) or b"") < stdin.heard(events):
        yield _lost(typed, "is damaged" if typed.exists() else "is missing")
    if not _is_told(facts, variables.file_of(trace, facts.session)):
        yield from _variables(variables.file_of(trace, facts.session))


def _log(facts: SessionFacts, log: Path, events: int, position: int, problem: str | None) -> Iterator[str]:
    torn = problem == files.CUT and facts.status in ("running", "crashed")
    if problem is not None and not torn:
        yield _lost(log, problem)
    elif events < position:
        yield _lost(log, f"ends at event {events} of {position}" if log.exists() else "is missing")


def _is_told(facts: SessionFacts, file: Path) -> bool:
    """Whether trace.json has the file's sum: what is wrong with it is then said by that."""
    return (facts.files or {}).get(file.name) is not None


def _differing(trace: Path, facts: SessionFacts) -> Iterator[str]:
    for name, digest in (facts.files or {}).items():
        try:
            if digest not in (None, _sum(trace / "files" / name)):
                yield _lost(trace / "files" / name, "is damaged")
        except (FileNotFoundError, PermissionError):
            continue  # it is missing, or its owner's alone
        except OSError as error:
            yield _lost(trace / "files" / name, f"cannot be read ({error.strerror})")


def _contents(trace: Path, events: list[files.Event]) -> Iterator[str]:
    told = {event[3]: event[4] or event[1] for event in events if isinstance(event[3], str)}
    there = {file.name for file in (trace / "files").glob("*") if _CONTENT.fullmatch(file.name)}
    for name in sorted(told.keys() | there):
        if files.content(trace, name) is None:
            what = f"what the run read of {told[name]} is lost" if name in told else "what the run read is lost"
            yield f"{trace / 'files' / name} {'is damaged' if name in there else 'is missing'}: {what}"


def _variables(file: Path) -> Iterator[str]:
    try:
        data = file.read_bytes()
        if not proven(data, json.loads(data)):
            yield _lost(file, "is damaged")
    except (FileNotFoundError, PermissionError):
        return
    except (OSError, ValueError, AttributeError, RecursionError):
        yield _lost(file, "is damaged")


def _lost(file: Path, what: str) -> str:
    return f"{file} {what}: {_LOSSES[file.suffix]}"
