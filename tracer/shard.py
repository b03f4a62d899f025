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
from numcodecs import blosc

from tracer.errors import DamageError
from tracer.tail import OpenFile

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = 2**64 - 1
"""The offset of a chunk that was never written."""
MOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
"""More than half of this machine's memory is not asked for at once: what claims to be larger is refused."""
_FRAME = struct.Struct("<BBBBIII")
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

    def run(self, row: int, begin: int, end: int) -> list[bytes] | None:
        """The compressed chunks `begin` to `end` of one row, None where one is missing. Raise DamageError."""
        extents = self.index[row, begin:end].tolist()
        if any(offset == NOWHERE for offset, _ in extents):
            return None
        first, last = extents[0][0], sum(extents[-1])
        if last - first != sum(size for _, size in extents):
            return [self._proven(self._read(offset, size), (row, i)) for i, (offset, size) in enumerate(extents, begin)]
        # They were written one after the other: one read gets them all.
        data = self._read(first, last - first)
        return [
            self._proven(data[offset - first : offset - first + size], (row, i))
            for i, (offset, size) in enumerate(extents, begin)
        ]

    def body(self) -> bytes:
        """Everything before the index."""
        return self._read(0, self.payload)


def inflate(data: bytes, out: np.ndarray, path: Path, row: int) -> None:
    """Decompress a chunk of `path` into all of `out`. Raise DamageError where it is not one of that size."""
    try:
        _check_frame(data, out.nbytes)
        blosc.decompress(data, out)
    except (RuntimeError, ValueError, struct.error) as error:
        raise DamageError(f"{path}: a chunk of row {row} is damaged: {error}", path=path) from None


def _check_frame(data: bytes, nbytes: int) -> None:
    """What a frame says of its own size is believed by the decoder: hold it against what is there."""
    _, _, _, _, size, _, packed = _FRAME.unpack_from(data)
    if (size, packed) != (nbytes, len(data)):
        raise ValueError(f"it holds {size} bytes in {packed}, not {nbytes} in {len(data)}")


def room_for(nbytes: int, path: Path) -> None:
    """Raise DamageError where `nbytes` at once are more than this machine should be asked for."""
    if nbytes > MOST_BYTES:
        raise DamageError(
            f"{path} claims {nbytes / 2**30:.0f} GiB at once: more than half of this machine's memory, refused",
            path=path,
        )
