"""The tensors of a trace: sharded Zarr v3 arrays, written and read without going through zarr-python.

Every array is plain Zarr v3, with codecs of the specification only (sharding_indexed, bytes, blosc, crc32c), which
`zarr.open` and others read. Hot reads take a chunk out of its shard directly, which is much quicker; they check the
same checksums.

Life cycle of a shard file: (1) it appears whole, by a rename; (2) where later rows belong into it, it is replaced by
one that begins with the same bytes and has a new index at its end, so that a reader who holds the old index finds what
it says.
Room: tracer. May touch: tensors.zarr of the trace it is given.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import xxhash

from tracer.blosc_frame import compress
from tracer.errors import DamageError, MissingDataError
from tracer.kept import Kept
from tracer.segments import write_atomically
from tracer.shard import NOWHERE, Coords, Shard, inflate, room_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SUM = "sum"
"""The attribute that proves the rest of zarr.json."""
_SHARDS = 64
"""So many shard files are held open."""
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
Write = Callable[[Path, bytes], None]
"""Puts a file in its place: `segments.write_atomically`, or a Batch's write."""


@dataclass(frozen=True)
class ArraySpec:
    """What zarr.json says: `chunk` is the unit that is read, `shard` that of a file; sizes in elements."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    dims: tuple[str | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    fill: int | float = 0
    typesize: int = 0

    @cached_property
    def per_shard(self) -> tuple[int, ...]:
        """Chunks in a shard, along each dimension."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, decompressed."""
        return math.prod(self.chunk) * self.dtype.itemsize

    def metadata(self) -> dict[str, Any]:
        """Return the content of zarr.json."""
        bytes_codec: dict[str, Any] = {"name": "bytes"}
        if self.dtype.itemsize > 1:
            bytes_codec["configuration"] = {"endian": "little"}
        packed = {"typesize": self.typesize or self.dtype.itemsize, "cname": "zstd", "clevel": 1}
        packed |= {"shuffle": "bitshuffle", "blocksize": 0}
        inner = [bytes_codec, {"name": "blosc", "configuration": packed}, {"name": "crc32c"}]
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": self.chunk, "codecs": inner, "index_codecs": index, "index_location": "end"}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": zarr_type(self.dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.shard}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": _fill_value(self.dtype, self.fill),
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": self.attributes,
            "dimension_names": self.dims,
        }

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ArraySpec:
        """Return what `metadata`, that of an array written by us, says.

        Raise KeyError, IndexError, TypeError, ValueError where it is none of those that we write.
        """
        attributes = dict(metadata["attributes"])
        # The last of them, where its name is damaged: older descriptions have none.
        named = _SUM if _SUM in attributes else next(reversed(attributes), _SUM)
        if (attributes.get(named) == _sum_of(metadata, named)) != (_SUM in attributes):
            raise ValueError("its sum is another's")
        attributes.pop(_SUM, None)
        inner = metadata["codecs"][0]["configuration"]["chunk_shape"]
        fill = metadata["fill_value"]
        spec = cls(
            tuple(metadata["shape"]),
            np.dtype(metadata["data_type"]),
            tuple(inner),
            tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"]),
            tuple(metadata["dimension_names"]),
            attributes,
            fill if isinstance(fill, int | float) else 0,
            metadata["codecs"][0]["configuration"]["codecs"][1]["configuration"]["typesize"],
        )
        spec._check(metadata["data_type"])
        return spec

    def _check(self, data_type: str) -> None:
        """Raise ValueError, KeyError where no array can be like that: what follows makes memory of these sizes."""
        sizes = (*self.shape, *self.chunk, *self.shard)
        ranks = {len(self.shape), len(self.chunk), len(self.shard), len(self.dims)}
        if zarr_type(self.dtype) != data_type or not self.shape or len(ranks) > 1:
            raise ValueError(f"no array of ours: {data_type} {self.shape}")
        if any(type(n) is not int or n < 0 for n in sizes) or not all((*self.chunk, *self.shard)):
            raise ValueError(f"sizes that cannot be: {self.shape}, {self.chunk}, {self.shard}")


def zarr_type(dtype: np.dtype) -> str:
    """The specification's name of a NumPy type."""
    return "bool" if dtype.kind == "b" else f"{_KINDS[dtype.kind]}{8 * dtype.itemsize}"


def _fill_value(dtype: np.dtype, fill: int | float) -> Any:
    if dtype.kind == "c":
        return [fill, fill]
    return bool(fill) if dtype.kind == "b" else fill


def write_group(path: Path, write: Write = write_atomically) -> None:
    """Make `path` a Zarr group, unless it is one."""
    if not (path / "zarr.json").exists():
        write(path / "zarr.json", _json({"zarr_format": 3, "node_type": "group", "attributes": {}}))


def _json(metadata: dict[str, Any]) -> bytes:
    attributes = {**metadata["attributes"], _SUM: _sum_of(metadata)}
    return json.dumps({**metadata, "attributes": attributes}, allow_nan=False).encode()


def _sum_of(metadata: Mapping[str, Any], named: str = _SUM) -> str:
    """xxh3_64 of `metadata` without its sum, the attribute `named`, as JSON with sorted keys and no spaces."""
    attributes = {key: value for key, value in metadata["attributes"].items() if key != named}
    text = json.dumps({**metadata, "attributes": attributes}, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


class ZarrArray:
    """One array of a trace: rows along the first dimension, appended by segments, read by rows."""

    def __init__(
        self,
        path: Path,
        spec: ArraySpec,
        write: Write = write_atomically,
        shards: Kept | None = None,
        chunks: Kept | None = None,
    ) -> None:
        """The array at `path`, which `spec` describes; see `open_array`, `create_array`.

        `shards` keeps the open files of several arrays; `chunks`, where it is given, what was decompressed of them.
        """
        self.path = path
        self.spec = spec
        self._write = write
        self._shards = Kept(_SHARDS) if shards is None else shards
        self._chunks = chunks
        self._pending: dict[Coords, dict[Coords, bytes]] = {}

    # -- reading -------------------------------------------------------------------------------------------------------

    def _shard(self, coords: Coords, *, fresh: bool = False) -> Shard | None:
        key = (self.path, coords)
        if fresh:
            self._shards.drop(key)
        try:
            return self._shards.get(key, lambda: (Shard(self._file_of(coords), self.spec.per_shard), 1))
        except FileNotFoundError:
            return None

    def _file_of(self, coords: Coords) -> Path:
        return self.path.joinpath("c", *map(str, coords))

    def _split(self, coords: Coords) -> tuple[Coords, Coords]:
        per = self.spec.per_shard
        shard = tuple(c // n for c, n in zip(coords, per, strict=True))
        return shard, tuple(c % n for c, n in zip(coords, per, strict=True))

    def encoded(self, coords: Coords) -> bytes | None:
        """The compressed chunk `coords`, None where nothing was written. Raise DamageError."""
        where, place = self._split(coords)
        shard = self._shard(where)
        data = shard.chunk(place) if shard is not None else None
        if data is None:
            # The shard may have been replaced by one with more rows since it was opened.
            shard = self._shard(where, fresh=True)
            data = shard.chunk(place) if shard is not None else None
        return data

    def chunk(self, coords: Coords) -> np.ndarray | None:
        """The values of chunk `coords` [*chunk shape], None where nothing was written. Raise DamageError."""
        data = self.encoded(coords)
        if data is None:
            return None
        room_for(self.spec.chunk_bytes, self.path)
        out = np.empty(self.spec.chunk, self.spec.dtype)
        inflate(data, out, self.path, coords[0])
        return out

    def _kept_chunk(self, coords: Coords) -> np.ndarray:
        """The values of chunk `coords`, not to be changed. Raise MissingDataError, DamageError."""

        def read() -> tuple[np.ndarray, int]:
            values = self.chunk(coords)
            if values is None:
                row = coords[0] * self.spec.chunk[0]
                raise MissingDataError(f"{self.path}: row {row} was never written", path=self.path)
            return values, values.nbytes

        return read()[0] if self._chunks is None else self._chunks.get((self.path, coords), read)

    def whole(self) -> np.ndarray:
        """All of a 1-D array. Raise MissingDataError where part of it was never written, DamageError."""
        size, length = self.spec.chunk[0], self.spec.shape[0]
        room_for((length + size) * self.spec.dtype.itemsize, self.path)
        out = np.empty(-(-length // size) * size, self.spec.dtype)
        for number, start in enumerate(range(0, length, size)):
            data = self.encoded((number,))
            if data is None:
                raise MissingDataError(f"{self.path}: chunk {number} was never written", path=self.path)
            inflate(data, out[start : start + size], self.path, start)
        return out[:length]

    def rows(self, rows: np.ndarray, span: tuple[int, int] | None = None) -> np.ndarray:
        """Return `rows` [n, *row shape]; `span` restricts the second dimension to first, last (exclusive).

        Raise MissingDataError where a row was never written, DamageError.
        """
        spec = self.spec
        first, last = span if span is not None else (0, spec.shape[1] if len(spec.shape) > 1 else 0)
        shape = spec.shape[1:] if len(spec.shape) == 1 else (last - first, *spec.shape[2:])
        room_for(len(rows) * math.prod(shape) * spec.dtype.itemsize, self.path)
        out = np.empty((len(rows), *shape), spec.dtype)
        height = spec.chunk[0]
        rows = np.asarray(rows, np.int64)
        numbers = rows // height
        by_chunk = np.argsort(numbers, kind="stable")
        starts = np.flatnonzero(np.diff(numbers[by_chunk], prepend=-1))
        pieces = list(self._pieces(first, last))
        for places in np.split(by_chunk, starts[1:]) if len(rows) else ():
            number = int(numbers[places[0]])
            inside = rows[places] - number * height
            for rest in pieces:
                self._copy(out, places, inside, (number, *rest), first)
        return out

    def words(self, rows: Sequence[int], first: int, last: int) -> np.ndarray:
        """Words `first` to `last` of `rows` of a [rows, words] array whose chunks are one row high: the hot path.

        Return [rows, words], each row contiguous. Raise MissingDataError where a row was never written, DamageError.
        """
        width = self.spec.chunk[1]
        begin, end = first // width, -(-last // width)
        room_for(len(rows) * (end - begin) * width * self.spec.dtype.itemsize, self.path)
        out = np.empty((len(rows), (end - begin) * width), self.spec.dtype)
        if begin == end:
            return out
        self._read_lines(rows, begin, end, out)
        skip = first - begin * width
        return out[:, skip : skip + last - first]

    def _read_lines(self, rows: Sequence[int], begin: int, end: int, out: np.ndarray) -> None:
        """Read the chunks `begin` to `end` of each of `rows` into the lines of `out`."""
        height, place = self.spec.shard[0], 0
        for number, some in groupby(rows, lambda row: row // height):
            inside = [row - number * height for row in some]
            for fresh in (False, True):
                # The shard may have been replaced by one with more rows since it was opened.
                shard = self._shard((number, 0), fresh=fresh)
                count = shard.read_rows(inside, begin, end, out[place:]) if shard is not None else 0
                inside, place = inside[count:], place + count
                if not inside:
                    break
            else:
                row = inside[0] + number * height
                raise MissingDataError(f"{self.path}: row {row} was never written", path=self.path)

    def _pieces(self, first: int, last: int) -> Iterator[Coords]:
        spec = self.spec
        if len(spec.shape) == 1:
            return iter([()])
        counts = [range(-(-n // c)) for n, c in zip(spec.shape[2:], spec.chunk[2:], strict=True)]
        return product(range(first // spec.chunk[1], -(-last // spec.chunk[1])), *counts)

    def _copy(self, out: np.ndarray, places: np.ndarray, inside: np.ndarray, coords: Coords, first: int) -> None:
        values = self._kept_chunk(coords)
        if values.shape[1:] == out.shape[1:]:
            out[places] = values[inside]
            return
        target, source = [], []
        for axis, (number, size) in enumerate(zip(coords[1:], self.spec.chunk[1:], strict=True)):
            start = number * size - (first if axis == 0 else 0)
            stop = min(start + size, out.shape[axis + 1])
            target.append(slice(max(start, 0), stop))
            source.append(slice(max(-start, 0), stop - start))
        whole = values[(slice(None), *source)]
        if len(places) == 1:
            out[(int(places[0]), *target)] = whole[int(inside[0])]
        else:
            out[(places, *target)] = whole[inside]

    def lacks(self, rows: np.ndarray) -> int | None:
        """The first of `rows` of which nothing was ever written, None where there is none. Raise DamageError."""
        height, rest = self.spec.chunk[0], (0,) * (len(self.spec.shape) - 1)
        for number in np.unique(rows // height).tolist():
            where, place = self._split((number, *rest))
            shard = self._shard(where)
            if shard is None or shard.index[place][0] == NOWHERE:
                return int(rows[rows // height == number][0])
        return None

    def damages(self) -> Iterator[str]:
        """Check the sums of all that was written; yield a line for each shard in which one is wrong."""
        for file in sorted((self.path / "c").rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                try:
                    shard = Shard(file, self.spec.per_shard)
                    for place in np.ndindex(self.spec.per_shard):
                        shard.chunk(place)
                except DamageError as error:
                    yield str(error)

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(self, coords: Coords, values: np.ndarray, *, fast: bool = False) -> None:
        """Compress the whole chunk `coords`; it is written by `flush`. `fast`: quicker to read, a little larger."""
        where, place = self._split(coords)
        self._pending.setdefault(where, {})[place] = compress(values, self.spec.typesize, fast=fast)

    def put_all(self, values: np.ndarray) -> None:
        """Put the whole of a 1-D array."""
        size = self.spec.chunk[0]
        for number, start in enumerate(range(0, len(values), size)):
            piece = values[start : start + size]
            missing = np.zeros(size - len(piece), piece.dtype)
            self.put((number,), np.concatenate([piece, missing]) if len(missing) else piece)

    def put_row(self, row: int, words: np.ndarray, *, fast: bool = False) -> None:
        """Put one row of a [rows, words] array whose chunks are one row high: the hot path."""
        width, height = self.spec.chunk[1], self.spec.shard[0]
        chunks = self._pending.setdefault((row // height, 0), {})
        for number, start in enumerate(range(0, len(words), width)):
            piece = words[start : start + width]
            if len(piece) < width:
                piece = np.concatenate([piece, np.zeros(width - len(piece), piece.dtype)])
            chunks[row % height, number] = compress(piece, fast=fast)

    def put_rows(self, rows: np.ndarray, values: np.ndarray, *, fast: bool = False) -> None:
        """Put `rows`, ascending: `values` [n, *row shape]; a smaller row shape leaves the rest as it was, or `fill`."""
        height = self.spec.chunk[0]
        numbers = np.asarray(rows, np.int64) // height
        for number in np.unique(numbers).tolist():
            here = numbers == number
            inside, part = rows[here] - number * height, values[here]
            for rest in self._pieces(0, values.shape[1] if values.ndim > 1 else 0):
                self._put_piece((number, *rest), inside, part, fast=fast)

    def _put_piece(self, coords: Coords, inside: np.ndarray, part: np.ndarray, *, fast: bool) -> None:
        source = [
            slice(n * size, min((n + 1) * size, limit))
            for n, size, limit in zip(coords[1:], self.spec.chunk[1:], part.shape[1:], strict=True)
        ]
        piece = part[(slice(None), *source)]
        if piece.shape == self.spec.chunk:
            self.put(coords, piece, fast=fast)
        elif piece.size:
            old = self._in_hand(coords)
            whole = old if old is not None else np.full(self.spec.chunk, self.spec.fill, self.spec.dtype)
            whole[(inside, *(slice(0, n) for n in piece.shape[1:]))] = piece
            self.put(coords, whole, fast=fast)

    def _in_hand(self, coords: Coords) -> np.ndarray | None:
        where, place = self._split(coords)
        data = self._pending.get(where, {}).get(place)
        if data is None:
            return self.chunk(coords)
        out = np.empty(self.spec.chunk, self.spec.dtype)
        inflate(data, out, self.path, coords[0])
        return out

    def grow(self, shape: tuple[int, ...], attributes: dict[str, Any] | None = None) -> None:
        """Make the array at least `shape`, and its attributes those given."""
        shape = tuple(max(a, b) for a, b in zip(self.spec.shape, shape, strict=True))
        attributes = self.spec.attributes if attributes is None else attributes
        if (shape, attributes) != (self.spec.shape, self.spec.attributes):
            spec = self.spec
            self.spec = replace(spec, shape=shape, attributes=attributes)
            self._write(self.path / "zarr.json", _json(self.spec.metadata()))

    def flush(self) -> None:
        """Write what was put: each shard anew, its beginning being the old one's bytes. Raise OSError."""
        for where, chunks in self._pending.items():
            old = self._shard(where, fresh=True)
            body = [old.body()] if old is not None else []
            index = old.index.copy() if old is not None else np.full((*self.spec.per_shard, 2), NOWHERE, "<u8")
            end = sum(map(len, body))
            for place, data in sorted(chunks.items()):
                body += [data, struct.pack("<I", google_crc32c.value(data))]
                index[place] = (end, len(data) + 4)
                end += len(data) + 4
            tail = index.tobytes()
            body += [tail, struct.pack("<I", google_crc32c.value(tail))]
            self._write(self._file_of(where), b"".join(body))
            self._shards.drop((self.path, where))
        self._pending = {}


def create_array(path: Path, spec: ArraySpec, write: Write = write_atomically, **kept: Kept | None) -> ZarrArray:
    """Create the array at `path`; one that is there is taken as it is, and grown to `spec.shape`."""
    try:
        array = open_array(path, write, **kept)
    except MissingDataError:
        write(path / "zarr.json", _json(spec.metadata()))
        return ZarrArray(path, spec, write, **kept)
    array.grow(spec.shape)
    return array


def open_array(path: Path, write: Write = write_atomically, **kept: Kept | None) -> ZarrArray:
    """Open the array at `path`; `kept` are the `shards` and `chunks` of ZarrArray. Raise MissingDataError, DamageError."""
    try:
        metadata = json.loads((path / "zarr.json").read_bytes())
        if metadata["node_type"] == "group":
            raise MissingDataError(f"{path}: a group, no array", path=path)
        return ZarrArray(path, ArraySpec.of(metadata), write, **kept)
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such array", path=path) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path}/zarr.json is damaged: {error!r}", path=path) from None
    except OSError as error:
        raise DamageError(f"{path}/zarr.json cannot be read: {error}", path=path) from None


def power_of_two(limit: int, at_most: int) -> int:
    """The largest power of two that is at most `limit` and `at_most`, at least 1."""
    return 1 << (max(1, min(limit, at_most)).bit_length() - 1)
