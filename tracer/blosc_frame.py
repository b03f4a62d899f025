"""A chunk as it is stored: one Blosc frame, which says itself how it was made.

Decompressing goes to Blosc's own function, which numcodecs carries, without the layers around it: these took longer
than the work where chunks are small. What a frame claims is held against what is there before it is believed.
Room: tracer. Pure.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_HEAD = struct.Struct("<BBBBIII")


def compress(values: np.ndarray, typesize: int = 0, *, fast: bool = False) -> bytes:
    """Shuffle by bits, then zstd, or lz4 where `fast`, which is read five times as quickly.

    `typesize`: bytes of one number, where it is not that of `values`.
    """
    cname, level = (b"lz4", 5) if fast else (b"zstd", 1)
    return blosc.compress(np.ascontiguousarray(values), cname, level, blosc.BITSHUFFLE, 0, typesize or values.itemsize)


@lru_cache(maxsize=1)
def _native() -> Callable[..., int] | None:
    """Blosc's function; None where numcodecs was built so that it cannot be had."""
    try:
        found: Any = ctypes.CDLL(blosc.__file__).blosc_decompress_ctx
    except (OSError, AttributeError):
        return None
    found.restype = ctypes.c_int
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


def address(values: np.ndarray) -> int:
    """Where the numbers of `values` begin."""
    return values.__array_interface__["data"][0]


def inflate(data: np.ndarray, out: np.ndarray) -> None:
    """Decompress the frame `data` (uint8 [n]) into all of `out`, both without gaps. Raise ValueError where it is another."""
    inflate_parts(data, ((0, len(data)),), out)


def inflate_parts(data: np.ndarray, parts: Iterable[tuple[int, int]], out: np.ndarray) -> None:
    """Decompress frames, each (offset, size) in `data`, into `out` one after the other, in equal shares.

    Raise ValueError where one is not of that size.
    """
    parts = tuple(parts)
    native, share = _native(), out.nbytes // len(parts)
    source, target = address(data), address(out)
    for i, (place, length) in enumerate(parts):
        _, _, _, _, size, _, packed = _HEAD.unpack_from(data, place)
        if (size, packed) != (share, length):
            raise ValueError(f"it holds {size} bytes in {packed}, not {share} in {length}")
        if native is None:
            count = share // out.itemsize
            blosc.decompress(data[place : place + length], out.reshape(-1)[i * count : (i + 1) * count])
        elif (done := native(source + place, target + i * share, share, 1)) != share:
            raise ValueError(f"it cannot be decompressed: {done}")
