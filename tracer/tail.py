"""The open segment of a trace: an append-only log of records, written by the training process and read by anyone.

A tail file is `MAGIC` followed by records. A record is

    header_len u32 | body_len u64 | sum of both u32 | sum of the header u64 | header (JSON, UTF-8) | body

all little-endian; sums are xxh3_64, the first its lower half: a damaged length is told from a torn end. The header
names its kind and the sections of the body in order:
`"sections": [[name, nbytes, sum], ...]`, `sum` being the section's xxh3_64 in hex, or null where the header
carries a stronger one (packed weights are proven by `hashes`). What the kinds mean is in FORMAT.md.

Life cycle, as one can observe it: (1) the file exists and ends with its last whole record; (2) a killed process may
leave a torn record at the end, which readers ignore; (3) when the next file of the session exists, or the session is
over, the file never changes again, and ends with a roll or close record unless its process was killed; (4) once the
segment sealed from it is committed the file is removed.

Room: tracer. May touch: the file it is given, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from tracer.errors import DamageError, NotATraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAGIC = b"REWINDT1"
_PREFIX = struct.Struct("<IQIQ")
_SUMS = struct.Struct("<IQ")
_LENGTHS = struct.Struct("<IQ")
_IOV_MAX = 1000
_NEAR, _FAR = 4 << 10, 256 << 10
"""So many bytes are read at once where headers are far apart, and where they are near."""
_START = re.compile(rb'\{"kind":"(\w+)"(?:,"step":(\d+))?[,}]')
"""How a header begins that we wrote; JSON's strings have no bare quotes, so nothing else looks like it."""
_NUMBERED = (b"step", b"state", b"keyframe")
_LAST = b',"sections":['
_SECTIONS = re.compile(rb',"sections":\[(?:\["[\w.]+",\d+,(?:null|"\w+")\],?)*\]\}\Z')
"""How it ends: the last brace closes the header, so these are its own sections."""
_NAMES = re.compile(r'\["([\w.]+)"')


def _encoder() -> Callable[[Any], str]:
    """What turns headers into JSON, made once: `JSONEncoder.encode` makes the C encoder anew at every call."""
    plain = json.JSONEncoder(separators=(",", ":"), check_circular=False, ensure_ascii=False)
    try:
        inner = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, plain.default, json.encoder.encode_basestring, None, ":", ",", False, False, True
        )
        "".join(inner({}, 0))
    except (AttributeError, TypeError):
        return plain.encode  # another Python has another one, or none
    return lambda header: "".join(inner(header, 0))


_encode = _encoder()

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Section:
    """One named run of bytes in a record's body; `sum` is None where the header proves the bytes otherwise."""

    name: str
    nbytes: int
    sum: str | None
    offset: int


class Record:
    """A record of a tail: its header, where its sections lie, and the open file that holds them.

    The header is proven when the record is found, and taken apart when it is asked for anything else than `kind`, `step`
    and the names of its sections: who opens a run that goes on would otherwise wait for thousands of them.
    """

    __slots__ = ("_body", "_head", "_parsed", "_source", "end", "kind", "names", "path", "step")

    def __init__(self, path: Path, head: bytes, body: int, nbytes: int, source: OpenFile | None) -> None:
        """`head` is its header as it was written, `body` and `nbytes` where what follows it lies. Raise DamageError."""
        self.path = path
        self.end = body + nbytes
        self._head, self._body, self._source = head, body, source
        self._parsed: tuple[dict[str, Any], tuple[Section, ...]] | None = None
        start, rest = _START.match(head), _SECTIONS.search(head, max(0, head.rfind(_LAST)))
        if start is None or rest is None or (start[2] is None and start[1] in _NUMBERED):
            # As another writer may have it: in any order.
            header, sections = self._apart()
            self.kind, self.step = _named(header)
            self.names = frozenset(s.name for s in sections)
        else:
            self.kind, self.step = start[1].decode(), int(start[2]) if start[2] is not None else None
            self.names = frozenset(_NAMES.findall(rest[0].decode()))

    def _apart(self) -> tuple[dict[str, Any], tuple[Section, ...]]:
        head = self._head  # first: another thread may just be done with it
        if self._parsed is None:
            try:
                header = json.loads(head)
                place, sections = self._body, []
                for name, nbytes, check in header.pop("sections"):
                    sections.append(Section(name, nbytes, check, place))
                    place += nbytes
                if place != self.end or any(s.nbytes < 0 for s in sections) or "kind" not in header:
                    raise ValueError("its sections are not its body, or it is of no kind")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DamageError(
                    f"{self.path}: the record at byte {self._body} is damaged: {error!r}", path=self.path
                ) from None
            self._parsed = header, tuple(sections)
            self._head = b""
        return self._parsed

    @property
    def header(self) -> dict[str, Any]:
        """All that was written of it. Raise DamageError."""
        return self._apart()[0]

    @property
    def sections(self) -> tuple[Section, ...]:
        """The runs of bytes in its body, in order. Raise DamageError."""
        return self._apart()[1]

    def read(self, name: str) -> bytes:
        """Return the bytes of section `name`; raise DamageError if they are not those that were written.

        Raise KeyError where the record has no such section.
        """
        section = next((s for s in self.sections if s.name == name), None)
        if section is None:
            raise KeyError(name)
        data = self._bytes(section)
        if len(data) != section.nbytes or (section.sum is not None and xxhash.xxh3_64_hexdigest(data) != section.sum):
            raise DamageError(
                f"{self.path}: section {name!r} of a {self.kind} record is damaged",
                step=self.header.get("step"),
                path=self.path,
            )
        return data

    def _bytes(self, section: Section) -> bytes:
        if self._source is not None:
            return os.pread(self._source.fd, section.nbytes, section.offset)
        with open(self.path, "rb") as file:
            file.seek(section.offset)
            return file.read(section.nbytes)


def _named(header: dict[str, Any]) -> tuple[str, int | None]:
    step = header.get("step")
    return str(header["kind"]), step if type(step) is int else None


class TailWriter:
    """Appends records to one tail file; a record is in the file completely or not at all."""

    def __init__(self, path: Path) -> None:
        """Create `path`, which must not exist. Raise OSError where the disk refuses."""
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._torn = False
        self.size = 0
        try:
            self._write([MAGIC], len(MAGIC))
        except OSError:
            os.close(self._fd)
            with contextlib.suppress(OSError):
                path.unlink()  # else its name would be taken when it is tried again
            raise

    def append(self, header: dict[str, Any], sections: Sequence[tuple[str, Sequence[Buffer], str | None]] = ()) -> int:
        """Append one record and return its size in bytes.

        A section is (name, buffers, sum): buffers are written one after the other; `sum` as in the module's docstring.
        Raise OSError where the disk refuses; the file then ends where it ended before.
        """
        listed: list[tuple[str, int, str | None]] = []
        buffers: list[Buffer] = [b"", b""]
        total = 0
        for name, parts, check in sections:
            size = sum(map(len, parts))
            listed.append((name, size, check))
            buffers += parts
            total += size
        head = _encode({**header, "sections": listed}).encode()
        lengths = _LENGTHS.pack(len(head), total)
        prefix = lengths + _SUMS.pack(_sum_of(lengths), xxhash.xxh3_64_intdigest(head))
        buffers[:2] = prefix, head
        total += len(prefix) + len(head)
        self._write(buffers, total)
        return total

    def _write(self, buffers: list[Buffer], expected: int) -> None:
        if self._torn:
            self._take_back()
        try:
            if len(buffers) <= _IOV_MAX and os.writev(self._fd, buffers) == expected:
                self.size += expected
                return
            os.ftruncate(self._fd, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
            for buffer in buffers:
                _write_all(self._fd, memoryview(buffer).cast("B"))
            self.size += expected
        except OSError:
            self._torn = True
            with contextlib.suppress(OSError):
                self._take_back()
            raise

    def _take_back(self) -> None:
        """Remove what was written of a record that the disk refused: nothing may be written behind it."""
        os.ftruncate(self._fd, self.size)
        os.lseek(self._fd, self.size, os.SEEK_SET)
        self._torn = False

    def stat(self) -> os.stat_result:
        """What the open file is, wherever its name points by now."""
        return os.fstat(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class NoTail:
    """Stands where a tail could not be begun: it refuses everything, and is replaced when it is tried again."""

    path = Path(os.devnull, "tail")
    size = 0

    def append(self, header: dict[str, Any], sections: Sequence[tuple[str, Sequence[Buffer], str | None]] = ()) -> int:
        """Raise OSError."""
        raise FileNotFoundError("no file was begun")

    def stat(self) -> os.stat_result:
        """Raise OSError."""
        raise FileNotFoundError("no file was begun")

    def close(self) -> None:
        """Nothing is open."""


def sync(path: Path) -> None:
    """Ask the disk to keep what was written to `path` (fdatasync)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def checksum(buffers: Sequence[Buffer]) -> str:
    """xxh3_64 of the buffers one after the other, in hex."""
    if len(buffers) == 1:
        return xxhash.xxh3_64_hexdigest(buffers[0])
    digest = xxhash.xxh3_64()
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def read_tail(path: Path, offset: int = 0) -> Iterator[Record]:
    """Yield the whole records of `path` from byte `offset` (0, or the `end` of a record read before).

    Stops at a torn record at the end of the file. Raises DamageError where a header in the middle is not what was
    written, NotATraceError where the file is no tail.
    """
    file = OpenFile(path)
    yield from _records(path, file, None, offset, file.size)


class OpenFile:
    """A file held open for reading, for as long as anything refers to it."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raise FileNotFoundError."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self.fd)

    @property
    def size(self) -> int:
        """The size of the file now."""
        return os.fstat(self.fd).st_size


class TailReader:
    """Reads a tail as it grows; the file is held open, so what was seen stays readable when it is removed."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raise FileNotFoundError where it is gone: it has been sealed."""
        self.path = path
        self._file = OpenFile(path)
        self._offset = self._seen = 0

    def new_records(self) -> Iterator[Record]:
        """Yield the records that became whole since the last call. Raise DamageError, NotATraceError as `read_tail`."""
        self._seen = self._file.size
        for record in _records(self.path, self._file, self._file, self._offset, self._seen):
            self._offset = record.end
            yield record

    @property
    def torn_bytes(self) -> int:
        """How many bytes followed the last whole record when it was last read."""
        return self._seen - self._offset

    def stat(self) -> os.stat_result:
        """What the open file is, wherever its name points by now."""
        return os.fstat(self._file.fd)

    def close(self) -> None:
        """Close the file; records read before can be read no more."""
        self._file.close()


class _Window:
    """A stretch of a file in memory: headers that lie near one another are read together."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start, self._data, self._ahead = 0, b"", _NEAR

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on; fewer where the file ends."""
        place = offset - self._start
        if not 0 <= place <= place + size <= len(self._data):
            near = 0 <= place <= len(self._data)
            self._ahead = min(4 * self._ahead, _FAR) if near else _NEAR
            self._start, self._data = offset, os.pread(self._fd, max(size, self._ahead), offset)
            place = 0
        return self._data[place : place + size]


def _records(path: Path, file: OpenFile, source: OpenFile | None, offset: int, size: int) -> Iterator[Record]:
    """The whole records of `file` between `offset` and `size`; they read their sections from `source`, or open `path`."""
    fd = file.fd
    if offset == 0:
        if size < len(MAGIC):
            return
        if (begin := os.pread(fd, len(MAGIC), 0)) != MAGIC:
            if not any(begin) and not any(os.pread(fd, size, 0)):
                return  # as below
            raise NotATraceError(f"{path}: not a tail of a Rewind trace", path=path)
        offset = len(MAGIC)
    window = _Window(fd)
    while (found := _header(path, window, offset, size)) is not None:
        head, body, nbytes = found
        if body + nbytes > size:
            return
        offset = body + nbytes
        yield Record(path, head, body, nbytes, source)


def _header(path: Path, window: _Window, offset: int, size: int) -> tuple[bytes, int, int] | None:
    """Return the header at byte `offset`, where its body begins and its length; None at the end, torn or not."""
    start = offset + _PREFIX.size
    if start > size:
        return None
    prefix = window.read(offset, _PREFIX.size)
    if not any(prefix) and not any(window.read(offset, size - offset)):
        return None  # a power cut leaves zeros where bytes had not reached the disk
    whole = len(prefix) == _PREFIX.size and _sum_of(prefix[: _LENGTHS.size]) == _PREFIX.unpack(prefix)[2]
    head_len, nbytes, _, check = _PREFIX.unpack(prefix) if whole else (0, 0, 0, 0)
    if whole and start + head_len > size:
        return None
    head = window.read(start, head_len) if whole else b""
    if not whole or xxhash.xxh3_64_intdigest(head) != check:
        raise DamageError(f"{path}: the record at byte {offset} is damaged", path=path)
    return head, start + head_len, nbytes


def _sum_of(lengths: bytes) -> int:
    return xxhash.xxh3_64_intdigest(lengths) & 0xFFFFFFFF
