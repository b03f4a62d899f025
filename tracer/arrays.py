"""Which arrays tensors.zarr has, how they are named, chunked and described: the same for writer and reader.

    params[.i]           [row, word]      packed states of layout i, coded as `codecs` says
    params_from[.i]      [row, 2]         the rows that each row is predicted from
    grads[.i]            [row, word]      packed gradients, as they are
    captures/<key>[~i]   [row, *shape]    one array per key, type and number of dimensions
    samples/<pool>       [id, *shape]
    keyframes/<s>-<k>    [byte]
    fingerprints         [row]

The row of state or step k of session s is `first_row(s) + k - first_step(s)`.
Room: tracer. May touch: tensors.zarr of the trace it is given.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from tracer.errors import DamageError, MissingDataError
from tracer.kept import Kept
from tracer.segments import write_atomically
from tracer.store import ArraySpec, ZarrArray, create_array, open_array, power_of_two, write_group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.packing import PackedLayout
    from tracer.segments import Batch

SHARD_ROWS = 256
_CHUNK_BYTES = 64 << 10
_FINGERPRINT_SHARD = 4096
_SAMPLE_SHARD = 1024
_OPEN_SHARDS = 128
_OPEN_FILES = 16
_KEPT_BYTES = 32 << 20
_WORDS = {"bfloat16": "<u2", "bits16": "<u2", "complex32": "<u4"}
"""Types of more than a byte that NumPy lacks."""
DECODING = (
    "(a, b) = params_from[i]; a < 0: state[i] = stored[i]; else with order(w) = ~w if its top bit is set else w | top:",
    "order(state[i]) = unzigzag(stored[i]) + (order(state[a]) if b < 0 else (order(state[a]) + order(state[b])) // 2),",
    "the sum modulo 2**bits; unzigzag(z) = (z >> 1) ^ -(z & 1). Tensor t is bytes offset..offset+nbytes of the row.",
)


class Arrays:
    """The arrays of one trace, opened once each."""

    def __init__(self, trace: Path, batch: Batch | None = None) -> None:
        """Of the trace at `trace`; what is written waits in `batch`, if there is one."""
        self.root = trace / "tensors.zarr"
        self._write = write_atomically if batch is None else batch.write
        self.forget()

    def get(self, name: str) -> ZarrArray:
        """Return the array `name`. Raise MissingDataError, DamageError."""
        opened = self._open
        if name not in opened:
            opened[name] = open_array(self._path(name), self._write, **self._kept(name))
        return opened[name]

    def _path(self, name: str) -> Path:
        """Where the array `name` lies. Raise DamageError where that is outside the trace."""
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise DamageError(f"{self.root}: {name!r} is no name of an array", path=self.root)
        return self.root.joinpath(*parts)

    def _kept(self, name: str) -> dict[str, Kept]:
        """What the arrays share: open files, and of samples, which come again each epoch, what was decompressed.

        `kept` and `files` are the segments' too: rows of replay data, and the files they come from.
        """
        return {"shards": self._shards} | ({"chunks": self.kept} if name.startswith("samples/") else {})

    def forget(self) -> None:
        """Read the descriptions anew when they are next asked for: other segments may have grown the arrays."""
        # All anew, so that who is in the midst of reading leaves nothing old behind.
        self._shards, self.kept, self.files = Kept(_OPEN_SHARDS), Kept(_KEPT_BYTES), Kept(_OPEN_FILES)
        self._open: dict[str, ZarrArray] = {}

    def create(self, name: str, spec: ArraySpec) -> ZarrArray:
        """Return the array `name`, created with `spec` where it is not there; the groups above it are created too."""
        found = self._open.get(name)
        if found is None:
            for parent in reversed(Path(name).parents):
                write_group(self.root / parent, self._write)
            found = self._open[name] = create_array(self._path(name), spec, self._write, **self._kept(name))
        else:
            found.grow(spec.shape)
        return found

    def named(self, stem: str, fits: dict[str, Any], separator: str = ".") -> str:
        """The name of the array `stem`, `stem.1`, ... whose attributes have `fits`; else the first free name."""
        stem = self._beside_arrays(stem)
        number = 0
        while True:
            name = stem if not number else f"{stem}{separator}{number}"
            try:
                attributes = self.get(name).spec.attributes
            except MissingDataError:
                # A group there holds arrays of its own: an array in its place would hide them.
                if not (self.root / name / "zarr.json").exists():
                    return name
                attributes = {}
            if all(attributes.get(key) == value for key, value in fits.items()):
                return name
            number += 1

    def _beside_arrays(self, stem: str) -> str:
        """`stem` with another name for each folder that is an array: Zarr has no arrays inside arrays."""
        parts = stem.split("/")
        for i in range(1, len(parts)):
            while self._is_array("/".join(parts[:i])):
                parts[i - 1] += "~"
        return "/".join(parts)

    def _is_array(self, name: str) -> bool:
        try:
            self.get(name)
        except MissingDataError:
            return False
        return True


def params_spec(layout: PackedLayout, rows: int, shard_rows: int) -> ArraySpec:
    """Packed states: a row is cut into chunks of whole tensor rows where these are of a handy size."""
    chunk = chunk_words(layout)
    width = layout.width
    attributes = {"layout": layout.table(), "decoding": list(DECODING), "from": "params_from"}
    shard = (shard_rows, max(1, -(-width // chunk)) * chunk)
    return ArraySpec((rows, width), layout.dtype, (1, chunk), shard, ("row", "word"), attributes)


@lru_cache(maxsize=64)
def chunk_words(layout: PackedLayout) -> int:
    """Words in a chunk: about 12 KiB, or a 128th of a large state, in whole rows of the largest matrix.

    A feature's row over many steps costs a chunk for each step, a state as much as it is long: half the size makes the
    first a third quicker, and the second no slower.
    """
    target = max(12 * 1024 // layout.word, layout.width // 128)
    matrices = [e for e in layout.entries if len(e.shape) > 1 and e.nbytes]
    row = max(matrices, key=lambda e: e.nbytes).row_bytes // layout.word if matrices else 0
    size = row * max(1, round(target / row)) if row and row < 2 * target else target
    return max(1, min(size, layout.width))


def from_spec(rows: int) -> ArraySpec:
    """`params_from`: two rows each, -1 where there is none, -2 where nothing is stored."""
    return ArraySpec((rows, 2), np.dtype("<i8"), (SHARD_ROWS, 2), (_FINGERPRINT_SHARD, 2), ("row", "reference"), {}, -2)


def fingerprint_spec(rows: int) -> ArraySpec:
    """Fingerprints by row of the state; 0 where none was recorded."""
    return ArraySpec((rows,), np.dtype("<u8"), (SHARD_ROWS,), (_FINGERPRINT_SHARD,), ("row",))


def grads_spec(layout: PackedLayout, rows: int, shard_rows: int) -> ArraySpec:
    """Packed gradients."""
    spec = params_spec(layout, rows, shard_rows)
    return ArraySpec(spec.shape, spec.dtype, spec.chunk, spec.shard, spec.dims, {"layout": layout.table()})


def capture_spec(
    key: str, dtype: str, shape: tuple[int, ...], dims: Iterable[str] | None, shard_rows: int
) -> ArraySpec:
    """A capture: small rows several to a chunk, large ones cut along their first dimension."""
    stored = numpy_type(dtype)
    size = max(1, stored.itemsize * math.prod(shape))
    sizes = tuple(max(1, n) for n in shape)
    if size <= _CHUNK_BYTES:
        chunk = (power_of_two(_CHUNK_BYTES // size, shard_rows), *sizes)
    else:
        chunk = (1, max(1, sizes[0] * _CHUNK_BYTES // size), *sizes[1:])
    shard = (shard_rows, -(-sizes[0] // chunk[1]) * chunk[1], *sizes[1:])
    names = tuple(dims) if dims is not None else default_dims(shape)
    attributes = {"key": key, "dtype": dtype, "ndim": len(shape), "dims": list(dims) if dims is not None else None}
    return ArraySpec((0, *shape), stored, chunk, shard, ("step", *names), attributes)


def default_dims(shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """The names of the dimensions of a capture that has none."""
    return ("feature", "input", *(None,) * (len(shape) - 2))[: len(shape)]


def sample_spec(pool: str, dtype: str, shape: tuple[int, ...]) -> ArraySpec:
    """Samples of one pool."""
    stored = numpy_type(dtype)
    size = max(1, stored.itemsize * math.prod(shape))
    sizes = tuple(max(1, n) for n in shape)
    height = power_of_two(_CHUNK_BYTES // size, _SAMPLE_SHARD)
    dims = ("sample", *(None,) * len(shape))
    return ArraySpec(
        (0, *shape), stored, (height, *sizes), (_SAMPLE_SHARD, *sizes), dims, {"pool": pool, "dtype": dtype}
    )


def keyframe_spec(nbytes: int, attributes: dict[str, Any]) -> ArraySpec:
    """A keyframe: one file of bytes, most of them those of floats: shuffled by fours they become a tenth smaller."""
    chunk = max(8, min(1 << 20, -(-nbytes // 8) * 8))
    shard = (max(1, -(-nbytes // chunk)) * chunk,)
    return ArraySpec((nbytes,), np.dtype("u1"), (chunk,), shard, ("byte",), attributes, typesize=4)


def numpy_type(dtype: str) -> np.dtype:
    """The type in which tensors of `dtype` (torch's name) are stored: itself, or unsigned words where Zarr lacks it.

    >>> numpy_type("bfloat16"), numpy_type("float32")
    (dtype('uint16'), dtype('float32'))
    """
    if dtype in _WORDS:
        return np.dtype(_WORDS[dtype])
    try:
        found = np.dtype(dtype)
    except TypeError:
        return np.dtype("u1")
    # Where ml_dtypes is imported NumPy knows float8, too; Zarr does not.
    return found if found.kind in "fiucb" and found.type.__module__ == "numpy" else np.dtype("u1")


def safe_path(key: str) -> str:
    """A capture's key as a path inside the store: nothing that a file system or Zarr would take amiss."""
    parts = [quote(part, safe="-_ .+=@()[]") for part in key.split("/")]
    return "/".join(_safe_part(part) for part in parts)


def _safe_part(part: str) -> str:
    if not part or part.startswith((".", "__")) or part in ("c", "zarr.json") or len(part) > 200:
        return f"~{part[:200]}"
    return part
