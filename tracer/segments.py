"""Segments: the pieces in which a trace is stored, one per tail file; how they are named, listed and committed.

A segment is open while its steps lie in `tail/SSSS-QQQQQQ.log`, and sealed once `metrics/SSSS-QQQQQQ.json` exists: that
file is written last, by one rename, and never changed. Both forms answer the same questions (`Segment`).
Room: tracer. May touch: the directories of the trace it is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import xxhash

from tracer.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping

    import numpy as np

    from tracer.packing import PackedLayout
    from tracer.ranges import Ranges

_NAME = re.compile(r"(\d{4,})-(\d{6,})")
_SYNCS = 8
Key = tuple[int, int]
"""(session, sequence): names a segment, and orders them."""


@dataclass(frozen=True)
class Variant:
    """One form in which a capture came: dtype (torch's name), shape, dims, at which steps, and where it is sealed."""

    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...] | None
    steps: Ranges
    array: str | None = None


class Segment(Protocol):
    """What the read side asks of a segment, open or sealed. What it has not is KeyError; damage is DamageError."""

    session: int
    sequence: int
    first_step: int
    steps: Ranges
    states: Ranges
    grad_steps: Ranges
    fingerprinted: Container[int]
    keyframes: tuple[int, ...]
    captures: Mapping[str, tuple[Variant, ...]]
    closed: bool

    def header(self, step: int) -> dict[str, Any]:
        """The header of the step's record."""
        ...

    def piece(self, step: int, name: str) -> bytes:
        """A section that replay needs."""
        ...

    def fingerprint(self, state: int) -> str:
        """The fingerprint of a state, in hex."""
        ...

    def layout_of(self, state: int) -> PackedLayout:
        """How a stored state is packed."""
        ...

    def last_alike(self, state: int) -> int:
        """The last of the stored states from `state` on, without a gap, that are packed as it is."""
        ...

    def words(self, state: int) -> tuple[PackedLayout, np.ndarray]:
        """A packed state."""
        ...

    def columns(self, states: np.ndarray, first: int, last: int) -> np.ndarray:
        """Words `first` to `last` (exclusive) of several states packed alike: [states, words]."""
        ...

    def grads(self, step: int) -> tuple[PackedLayout, np.ndarray]:
        """The gradients of a step, packed as its state is."""
        ...

    def capture(self, key: str, variant: Variant, steps: np.ndarray) -> np.ndarray:
        """The bytes of a capture at `steps`, all of `variant`: uint8 [steps, bytes]."""
        ...

    def keyframe(self, state: int) -> tuple[Any, list[int], bytes]:
        """A keyframe: its tree, the sizes of its buffers, and their bytes one after the other."""
        ...

    def blob(self, digest: str) -> bytes:
        """A content-addressed blob."""
        ...

    def close(self) -> None:
        """Give back what is held open."""
        ...


def key_of(path: Path) -> Key | None:
    """Return the segment that `path` belongs to, None where its name is not that of a segment."""
    match = _NAME.match(path.name)
    return (int(match[1]), int(match[2])) if match else None


def name_of(key: Key) -> str:
    """(0, 3) -> `0000-000003`."""
    return f"{key[0]:04d}-{key[1]:06d}"


def list_tails(path: Path) -> dict[Key, Path]:
    """Return the tail files of the trace at `path`, in order.

    A reader lists tails first and commits second: a segment that is sealed in between is in both, never in neither.
    """
    return _list(path / "tail", ".log")


def list_commits(path: Path) -> dict[Key, Path]:
    """Return the commits of the trace at `path`, in order."""
    return _list(path / "metrics", ".json")


def _list(directory: Path, suffix: str) -> dict[Key, Path]:
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.name.endswith(suffix)]
    except FileNotFoundError:
        return {}
    found = {key_of(Path(name)): name for name in names}
    return {key: directory / name for key, name in sorted((k, n) for k, n in found.items() if k is not None)}


def write_commit(path: Path, key: Key, facts: dict[str, Any]) -> None:
    """Commit segment `key`: its facts appear, whole, in one act."""
    write_atomically(path / "metrics" / f"{name_of(key)}.json", with_sum(facts))


def with_sum(facts: dict[str, Any], indent: int | None = None) -> bytes:
    """`facts` as JSON, the last of them `sum`: xxh3_64 of the same JSON without it."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(facts, separators=separators, indent=indent).encode()
    return json.dumps({**facts, "sum": xxhash.xxh3_64_hexdigest(text)}, separators=separators, indent=indent).encode()


def proven(data: bytes, facts: dict[str, Any]) -> bool:
    """Whether `data` is what `with_sum` wrote of `facts`, which are read from it; true where it was written without one."""
    last = next(reversed(facts), "")
    place = data.rfind(b'"%s"' % ("sum" if "sum" in facts else last).encode())
    before = data[:place].rstrip().removesuffix(b",")
    true = xxhash.xxh3_64_hexdigest(before + (b"\n}" if b"\n" in data else b"}"))
    # Under another name it is the name that was damaged.
    return facts["sum"] == true if "sum" in facts else facts.get(last) != true


def read_commit(path: Path) -> dict[str, Any]:
    """Return the facts of a commit. Raise DamageError."""
    try:
        data = path.read_bytes()
        facts = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is damaged: {error}", path=path) from None
    except OSError as error:
        raise DamageError(f"{path} cannot be read: {error}", path=path) from None
    key = key_of(path)
    if not isinstance(facts, dict) or (facts.get("session"), facts.get("seq")) != key or not proven(data, facts):
        raise DamageError(f"{path} is not what was written as the commit of its segment", path=path)
    return facts


def write_atomically(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Put `data` at `path`: a reader sees what was there, or all of it. It is on the disk when this returns, if `synced`."""
    batch = Batch(synced=synced)
    batch.write(path, data)
    batch.finish()


class Batch:
    """Files that are put in their places together: each whole, and on the disk before it gets its name; then the names."""

    def __init__(self, *, synced: bool = True) -> None:
        """Nothing is written yet. Without `synced` a power cut may leave less than a file, or none."""
        self._synced = synced
        self._files: dict[Path, Path] = {}
        self._folders: set[Path] = set()

    def write(self, path: Path, data: bytes) -> None:
        """Write `data`, for `path`, under another name. Raise OSError."""
        self._make(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._files[path] = temporary
        try:
            temporary.write_bytes(data)
        except OSError:
            del self._files[path]
            _remove(temporary)
            raise

    def _make(self, folder: Path) -> None:
        self._folders.add(folder)
        lacking = folder
        while not lacking.exists():
            lacking = lacking.parent
            self._folders.add(lacking)
        folder.mkdir(parents=True, exist_ok=True)

    def finish(self) -> None:
        """Give all files their names. Raise OSError."""
        try:
            self._sync(self._files.values())
            for path, temporary in self._files.items():
                os.replace(temporary, path)
            self._sync(self._folders)
        except OSError:
            for temporary in self._files.values():
                _remove(temporary)
            raise
        finally:
            self._files, self._folders = {}, set()

    def _sync(self, paths: Collection[Path]) -> None:
        if not self._synced:
            return
        if len(paths) > 1:
            # The file system gathers what is asked for at the same time into one write of its journal.
            with ThreadPoolExecutor(_SYNCS) as pool:
                list(pool.map(_sync, paths))
        else:
            for path in paths:
                _sync(path)


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file's bytes, or the names in a folder, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
