"""Whether a trace was recorded by this user on this machine: its facts bear a mark that only they can make.

The mark is an HMAC, by a key that lies in the user's state directory and that only they can read, over all that a replay
executes: program, arguments, sources by their hashes, environment variables, the trace's id, the parent of a branch. A trace
without one (older, from elsewhere, or changed since) is asked about before its program is run.
Room: tracer. May touch: the key in the user's state directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.manifest import Manifest

_BYTES = 32


def key_file() -> Path:
    """Where the key lies. Raise RuntimeError where there is no home."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "rewind" / "key"


def signed(facts: Manifest) -> Manifest:
    """Return `facts` with this user's mark; without one where no key can be had."""
    return replace(facts, origin=_mark(facts, _key() or _new_key()))


def is_ours(facts: Manifest) -> bool:
    """Whether `facts` bear this user's mark, and nothing of what a replay executes was changed since."""
    mark = _mark(facts, _key()) if isinstance(facts.origin, str) else None
    return mark is not None and hmac.compare_digest(mark.encode(), str(facts.origin).encode())


def mark(text: str) -> str | None:
    """This user's mark for any other text that a replay goes by; None where no key can be had."""
    return _hmac(text, _key() or _new_key())


def bears(text: str, found: object) -> bool:
    """Whether `found` is this user's mark for `text`."""
    own = _hmac(text, _key())
    return own is not None and isinstance(found, str) and hmac.compare_digest(own.encode(), found.encode())


_allowed: set[str] = set()
_all = threading.Event()


def allow(*traces: Path) -> None:
    """From here on this process may run the programs of `traces`: its user said so."""
    _allowed.update(str(trace.resolve()) for trace in traces)


def allow_all() -> None:
    """From here on this process may run the program of any trace: its user said so."""
    _all.set()


def may_run(trace: Path, facts: Manifest) -> bool:
    """Whether the program of `trace`, which has these facts, may be run without asking."""
    return _all.is_set() or str(trace.resolve()) in _allowed or is_ours(facts)


def _mark(facts: Manifest, key: bytes | None) -> str | None:
    run = [facts.id, asdict(facts.program), facts.environment, [[s.session, s.argv] for s in facts.sessions]]
    if any(s.files is not None for s in facts.sessions):
        run.append([[s.session, s.files] for s in facts.sessions])
    parent = [facts.parent.trace, facts.parent.id] if facts.parent is not None else None
    return _hmac(json.dumps(["rewind origin 1", *run, parent], sort_keys=True), key)


def _hmac(text: str, key: bytes | None) -> str | None:
    return None if key is None else hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The key; None where there is none, or where others could have read or made it."""
    with contextlib.suppress(OSError, RuntimeError):
        fd = os.open(key_file(), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            about = os.fstat(fd)
            key = os.read(fd, _BYTES + 1)
        finally:
            os.close(fd)
        own = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077
        return key if own and len(key) == _BYTES else None
    return None


def _new_key() -> bytes | None:
    """Make a key, in the place of one that is no good; of two that are made at once the first to be there is it."""
    with contextlib.suppress(OSError, RuntimeError):
        target = key_file()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f".key.{secrets.token_hex(8)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, secrets.token_bytes(_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            if target.exists() and _key() is None:
                os.replace(temporary, target)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return _key()
