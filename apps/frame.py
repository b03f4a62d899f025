"""One message of bytes from the app to the browser: a JSON header and arrays, as `static/common.js` reads them.

Layout: uint32 length of the header (little-endian), the header (JSON, padded with spaces to a multiple of 8), then the
arrays, each at a multiple of 8; `header.arrays` is {name: {dtype, shape, offset}} with offsets from the first array.
Room: apps. Pure.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.terminal import jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """Return `header` and `arrays` (uint8, float32, int32; others become float32) as one message."""
    placed, chunks, offset = {}, [], 0
    for name, value in (arrays or {}).items():
        array = np.ascontiguousarray(value if value.dtype.name in _KEPT else value.astype(np.float32))
        data = array.tobytes()
        placed[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": offset}
        chunks.append(data + bytes(-len(data) % 8))
        offset += len(chunks[-1])
    text = json.dumps(jsonable({**header, "arrays": placed}), separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return b"".join([struct.pack("<I", len(text)), text, *chunks])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the header and the arrays of a message."""
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    arrays = {}
    for name, facts in header["arrays"].items():
        count = int(np.prod(facts["shape"], dtype=np.int64))
        flat = np.frombuffer(message, facts["dtype"], count, 4 + length + facts["offset"])
        arrays[name] = flat.reshape(facts["shape"])
    return header, arrays


_KEPT = ("uint8", "float32", "int32")
