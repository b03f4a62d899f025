"""What the program reads from standard input: kept while it is recorded, given again when it is replayed.

It lies in files/<session>.stdin, and each read is an event "i" of the session's log (see `tracer.files`), with its sum.
Room: tracer. May touch: sys.stdin, and descriptor 0 of an engine's process (`give` only).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any

import xxhash

from tracer import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Tee(io.RawIOBase):
    """Descriptor 0, where what is read is also told."""

    name = "<stdin>"

    def __init__(self, log: files.FileLog) -> None:
        super().__init__()
        self._log = log

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def isatty(self) -> bool:
        return os.isatty(0)

    def readinto(self, buffer: Any) -> int:
        data = os.read(0, len(buffer))
        buffer[: len(data)] = data
        with contextlib.suppress(Exception):  # nothing that goes wrong in keeping it reaches the program
            self._log.heard(data)
        return len(data)


@contextlib.contextmanager
def teed(log: files.FileLog) -> Iterator[None]:
    """While the block runs, tell `log` what is read; not where sys.stdin is something else than the process's own."""
    old = sys.stdin
    if not _is_plain(old):
        yield
        return
    sys.stdin = io.TextIOWrapper(io.BufferedReader(_Tee(log)), encoding=old.encoding, errors=old.errors)
    try:
        yield
    finally:
        sys.stdin = old


def _is_plain(stream: Any) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return type(stream) is io.TextIOWrapper and stream.fileno() == 0
    return False


def read(trace: Path, session: int) -> bytes | None:
    """What a session read, as far as it is what was kept; None where it read nothing."""
    events = [event[3] for event in files.events(trace, session)[1] if event[0] == "i"]
    if not events:
        return None
    found = b""
    with contextlib.suppress(OSError), open(files.stdin_file(trace, session), "rb") as file:
        for size, digest in events:
            data = file.read(size)
            if xxhash.xxh3_64_hexdigest(data) != digest:
                break
            found += data
    return found


def heard(events: list[files.Event]) -> int:
    """How many bytes a session read, as its log says."""
    return sum(event[3][0] for event in events if event[0] == "i")


def give(trace: Path, session: int, scratch: Path) -> bool:
    """Make it this process's standard input, where there was any; return whether it is whole."""
    data = read(trace, session)
    if data is None:
        return True
    place = scratch / "stdin"
    place.write_bytes(data)
    descriptor = os.open(place, os.O_RDONLY)
    os.dup2(descriptor, 0)
    os.close(descriptor)
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115  for good
    return len(data) == heard(files.events(trace, session)[1])
