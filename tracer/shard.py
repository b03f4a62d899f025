"""One shard file of a Zarr array: its index, its compressed chunks, each proven by its sum before it is used.

Chunks are read with `pread`, not mapped: a file that is cut short or fails under a reader is then an error, not a
signal that kills the process. Sizes that a damaged or hostile file claims are checked before anything of that size is
made.
Room: tracer. May touch: reads the file it is given.
"""

from __future__ import annotations

import math
import os
import struct
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from tracer import blosc_frame
from tracer.errors import DamageError
from tracer.tail import OpenFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOWHERE = 2**64 - 1
"""The offset of a chunk that was never written."""
MOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
"""More than half of this machine's memory is not asked for at once: what claims to be larger is refused."""
_SUM = struct.Struct("<I")
Coords = tuple[int, ...]


class Shard:
    """One shard file, as it was when it was opened."""

    def __init__(self, path: Path, per_shard: Coords) -> None:
        """Open the shard at `path`. Raise FileNotFoundError, DamageError."""
        self.path = path
        self._file = OpenFile(path)
        size = self._file.size
        self.payload = size - 16 * math.prod(per_shard) - 4
        """Bytes before the index."""
        if self.payload < 0:
            raise DamageError(f"{path} is cut short", path=path)
        end = self._read(self.payload, size - self.payload)
        if google_crc32c.value(end[:-4]) != _SUM.unpack(end[-4:])[0]:
            raise DamageError(f"{path}: the index is damaged", path=path)
        self.index = np.frombuffer(end[:-4], "<u8").reshape(*per_shard, 2)
        self._check_extents()

    def _check_extents(self) -> None:
        """No chunk lies outside the file, and no byte belongs to two: a small file cannot stand for endless data."""
        pairs = self.index.reshape(-1, 2)
        pairs = pairs[pairs[:, 0] != NOWHERE]
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        limit = np.uint64(self.payload)
        inside = (pairs[:, 0] <= limit) & (pairs[:, 1] <= limit) & (pairs[:, 1] > 20)
        ends = pairs.sum(1, dtype=np.uint64) if inside.all() else None
        if ends is None or (ends > limit).any() or (ends[:-1] > pairs[1:, 0]).any():
            raise DamageError(f"{self.path}: the index names bytes that are not there, or twice", path=self.path)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._file.fd, size, offset)
        except OSError as error:
            raise DamageError(f"{self.path} cannot be read: {error}", path=self.path) from None
        if len(data) != size:
            raise DamageError(f"{self.path} is cut short", path=self.path)
        return data

    def chunk(self, place: Coords) -> bytes | None:
        """The compressed chunk at `place` in the shard, None where there is none. Raise DamageError."""
        offset, size = self.index[place].tolist()
        return None if offset == NOWHERE else self._proven(self._read(offset, size), place)

    def _proven(self, data: bytes, place: Coords) -> bytes:
        """`data` without its sum. Raise DamageError where that is another's."""
        chunk = data[:-4]
        if google_crc32c.value(chunk).to_bytes(4, "little") != data[-4:]:
            raise DamageError(f"{self.path}: chunk {place} is damaged", path=self.path)
        return chunk

    def read_rows(self, rows: list[int], begin: int, end: int, out: np.ndarray) -> int:
        """Decompress the chunks `begin` to `end` of each of `rows` into a line of `out`, one after the other.

        Return how many were read: the rest begins with a row that is not there. Raise DamageError.
        """
        extents = self.index[rows, begin:end]
        missing = (extents[..., 0] == NOWHERE).any(1)
        count = int(missing.argmax()) if missing.any() else len(rows)
        extents = extents[:count]
        totals = extents[..., 1].sum(1)
        # Mostly they were written one after the other: one read gets them all.
        joined = extents[:, -1].sum(1) - extents[:, 0, 0] == totals if end - begin > 1 else np.ones(count, bool)
        room = np.empty(int(totals.max(initial=0)), np.uint8)  # taken once: fresh memory costs more than the copy
        found = zip(rows, extents.tolist(), totals.tolist(), joined.tolist(), out, strict=False)
        for row, parts, total, whole, line in found:
            for offset, size, place in ((parts[0][0], total, 0),) if whole else _placed(parts):
                self._read_into(offset, room[place : place + size])
            self._inflate(row, begin, [size for _, size in parts], room, line)
        return count

    def _inflate(self, row: int, begin: int, sizes: list[int], data: np.ndarray, out: np.ndarray) -> None:
        place, frames = 0, []
        for i, size in enumerate(sizes):
            stop = place + size - 4
            if google_crc32c.value(data[place:stop]) != _SUM.unpack_from(data, stop)[0]:
                raise DamageError(f"{self.path}: chunk {(row, begin + i)} is damaged", path=self.path)
            frames.append((place, size - 4))
            place += size
        try:
            blosc_frame.inflate_parts(data, frames, out)
        except (RuntimeError, ValueError, struct.error) as error:
            raise DamageError(f"{self.path}: a chunk of row {row} is damaged: {error}", path=self.path) from None

    def _read_into(self, offset: int, room: np.ndarray) -> None:
        try:
            count = os.preadv(self._file.fd, [room], offset)
        except OSError as error:
            raise DamageError(f"{self.path} cannot be read: {error}", path=self.path) from None
        if count != len(room):
            raise DamageError(f"{self.path} is cut short", path=self.path)

    def body(self) -> bytes:
        """Everything before the index."""
        return self._read(0, self.payload)


def _placed(parts: list[list[int]]) -> Iterator[tuple[int, int, int]]:
    """(offset, size, place): where each part lies in the file, and where in what is read of it."""
    place = 0
    for offset, size in parts:
        yield offset, size, place
        place += size


def inflate(data: bytes | np.ndarray, out: np.ndarray, path: Path, row: int) -> None:
    """Decompress a chunk of `path` into all of `out`. Raise DamageError where it is not one of that size."""
    try:
        blosc_frame.inflate(np.frombuffer(data, np.uint8), out)
    except (RuntimeError, ValueError, struct.error) as error:
        raise DamageError(f"{path}: a chunk of row {row} is damaged: {error}", path=path) from None


def room_for(nbytes: int, path: Path) -> None:
    """Raise DamageError where `nbytes` at once are more than this machine should be asked for."""
    if nbytes > MOST_BYTES:
        raise DamageError(
            f"{path} claims {nbytes / 2**30:.0f} GiB at once: more than half of this machine's memory, refused",
            path=path,
        )
