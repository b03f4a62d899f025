"""trace.json: the frozen facts of a trace, read and written whole.

Written through a temporary file and one rename, so that a reader sees the old facts or the new ones.
Room: tracer. May touch: trace.json of the directory it is given.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.errors import DamageError, FormatVersionError, NotATraceError
from tracer.segments import proven, with_sum, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 1
_PATIENCE = (0.02, 0.05, 0.1, 0.4)
"""Seconds until a refused write is tried again."""
ROW_ALIGNMENT = 256
"""A session's rows begin at a multiple of this, so that a sealed shard is never written again."""


@dataclass(frozen=True)
class Program:
    """What was run: `kind` is script, module or block (a function or a `with` block: it must be given again to replay)."""

    kind: str
    path: str | None = None
    module: str | None = None
    argv: tuple[str, ...] = ()
    cwd: str = ""
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionFacts:
    """One process that wrote into the trace. `first_row` is the row of its first state in every per-state array."""

    session: int
    started: float
    first_step: int
    first_row: int
    host: str
    pid: int
    pid_started: float
    ended: float | None = None
    status: str = "running"
    note: str | None = None
    argv: tuple[str, ...] = ()
    seed: dict[str, Any] | None = None
    last_segment: int | None = None
    """The sequence number of the last segment of a session that crashed: one that ended says so in its last record."""
    files: dict[str, str | None] | None = None
    """The session's own files in files/: {name: sha256}, None where it is not known yet; see `tracer.beside`."""


@dataclass(frozen=True)
class Parent:
    """Where a branch comes from: the trace, its id, the state it starts from, and what was changed there."""

    trace: str
    id: str
    at_step: int
    change: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The facts of a trace."""

    id: str
    created: float
    detail: str
    weights: bool
    every: int
    program: Program
    environment: dict[str, Any]
    sessions: tuple[SessionFacts, ...] = ()
    parent: Parent | None = None
    origin: str | None = None
    """The mark of the user who recorded it, see `tracer.origin`."""
    addenda: tuple[str, ...] = ()
    """What was found out later and is to be there: `hindsight/x.parquet`, `verdicts/x.parquet`."""
    format: int = FORMAT

    def session(self, number: int) -> SessionFacts | None:
        """The session of that number; None where there is none."""
        return next((s for s in self.sessions if s.session == number), None)

    def with_session(self, session: SessionFacts) -> Manifest:
        """Return these facts with `session` added, or in the place of the one with its number."""
        others = tuple(s for s in self.sessions if s.session != session.session)
        return replace(self, sessions=tuple(sorted((*others, session), key=lambda s: s.session)))

    def write(self, path: Path) -> None:
        """Put these facts into `path`/trace.json, durably and at once. Raise OSError where the disk goes on refusing."""
        data = with_sum(asdict(self), indent=1)
        for patience in _PATIENCE:
            try:
                _put(path, data)
            except OSError:
                time.sleep(patience)
            else:
                return
        _put(path, data)


def _put(path: Path, data: bytes) -> None:
    os.stat(path)  # Where the trace was removed it is not begun anew by its facts alone.
    write_atomically(path / "trace.json", data)


def amend(path: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Replace the facts of the trace at `path` by what `change` makes of them, and return those.

    Two processes may do so at once (the sealer of a session that was killed, and the one that goes on): neither undoes
    what the other wrote. Raise OSError, NotATraceError, FormatVersionError, DamageError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        facts = change(read(path))
        facts.write(path)
        return facts
    finally:
        os.close(fd)


def read(path: Path) -> Manifest:
    """Read `path`/trace.json. Raise NotATraceError, FormatVersionError or DamageError."""
    target = Path(path) / "trace.json"
    try:
        data = target.read_bytes()
        raw = json.loads(data)
    except FileNotFoundError:
        hint = f"; it holds the ranks of a run: {path}/rank-0 is one" if (Path(path) / "rank-0").is_dir() else ""
        raise NotATraceError(f"{path} is no trace: it has no trace.json{hint}", path=path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise NotATraceError(f"{target} cannot be read: {error}", path=path) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise NotATraceError(f"{target} is not that of a Rewind trace", path=path)
    if raw["format"] > FORMAT:
        raise FormatVersionError(
            f"{path} has format {raw['format']}, this Rewind reads up to {FORMAT}: install a newer Rewind", path=path
        )
    if not proven(data, raw):
        raise DamageError(
            f"{target} is not what was written: damaged, or changed by hand (who did so on purpose takes out its last"
            " line, the sum)",
            path=path,
        )
    try:
        return _build(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise NotATraceError(f"{target} lacks or mistypes a field: {error}", path=path) from None


def source_name(path: str, data: bytes) -> str:
    """Where the source file `path` with the content `data` lies in a trace: its name proves it."""
    return f"source/{hashlib.sha256(data).hexdigest()[:32]}_{os.path.basename(path)}"


def is_source(name: str, data: bytes) -> bool:
    """Whether `data` is what `source_name` named so; names without a sum, as older traces have, prove nothing."""
    digest = re.fullmatch(r"source/([0-9a-f]{16}|[0-9a-f]{32})_.*", name, re.DOTALL)
    return digest is None or hashlib.sha256(data).hexdigest().startswith(digest[1])


def _build(raw: dict[str, Any]) -> Manifest:
    raw = {key: value for key, value in raw.items() if key != "sum"}
    program = Program(**{**raw["program"], "argv": tuple(raw["program"]["argv"])})
    parent = Parent(**raw["parent"]) if raw.get("parent") else None
    sessions = tuple(SessionFacts(**{**s, "argv": tuple(s.get("argv", ()))}) for s in raw["sessions"])
    listed = tuple(map(str, raw.get("addenda", ())))
    return Manifest(**{**raw, "program": program, "parent": parent, "sessions": sessions, "addenda": listed})
