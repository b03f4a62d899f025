"""Batches on their way into the trace: each distinct sample is stored once, by content; a batch is a list of sample ids.

Room: tracer. May touch: its own tables.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xxhash

from tracer import values

if TYPE_CHECKING:
    from tracer.making import Recipe
    from tracer.tail import Buffer

ROW_BYTES = 256
"""Rows smaller than this are stored with the batch: naming them would cost more than they do."""
_PLAIN = {torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.int32, torch.bool}
"""What NumPy has, too: most batches."""
_GIVE_UP_AFTER = 4096
_GIVE_UP_BYTES = 64 << 20
_MAX_KNOWN = 2_000_000


@dataclass
class _Pool:
    """The samples of one dtype and shape: ids by content, and how often a sample was met again."""

    known: dict[bytes, int] = field(default_factory=dict)
    count: int = 0
    nbytes: int = 0
    met_again: int = 0

    @property
    def seldom(self) -> bool:
        """Samples have hardly ever been met again."""
        return self.met_again * 20 <= self.count

    def useless(self, *, steady: bool) -> bool:
        """Samples never repeat (augmented, generated or windowed data): batches are then stored as they are.

        `steady`: they are known to come again with the next epoch, however long that is.
        """
        if steady or (self.count < _GIVE_UP_AFTER and self.nbytes < _GIVE_UP_BYTES):
            return self.count >= _MAX_KNOWN
        return self.seldom or self.count >= _MAX_KNOWN


class _Form(NamedTuple):
    """What the samples of one dtype and shape are called, and where they are counted."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    pool: _Pool


@dataclass(frozen=True)
class NewSamples:
    """Samples met for the first time, to be stored before the batch that has them."""

    pool: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    rows: list[Buffer]


class EncodedBatch(NamedTuple):
    """A batch as JSON; its leaves are sample ids (section ids<j>), inline buffers, or made again from `recipe`."""

    node: Any
    ids: list[bytes]
    inline: list[bytes]
    size: int | None
    recipe: Recipe | None = None


class BatchEncoder:
    """Encodes batches against the samples that were stored before."""

    def __init__(self, counts: dict[str, int] | None = None) -> None:
        """`counts` says how many samples of each pool the trace has already (a later session goes on from there)."""
        self._pools: dict[str, _Pool] = {}
        self._new: list[NewSamples] = []
        self._forms: dict[Any, _Form] = {}
        self.whole = 0
        """Bytes of what was stored, or is to be: samples met for the first time, and those that are stored with their batch."""
        for name, count in (counts or {}).items():
            self._pools[name] = _Pool(count=count)

    @property
    def counts(self) -> dict[str, int]:
        """How many samples each pool has."""
        return {name: pool.count for name, pool in self._pools.items()}

    def forget(self) -> None:
        """Every sample is a new one again, under a new number; what waits to be stored goes on waiting."""
        self._pools = {name: _Pool(count=count) for name, count in self.counts.items()}
        self._forms.clear()

    def encode(self, batch: Any, recipe: Recipe | None = None, *, steady: bool = False) -> EncodedBatch:
        """Return `batch` (any nesting of tensors, arrays, strings, numbers) in its stored form.

        Samples that hardly ever come again are not in it where there is a `recipe`; `steady`: see `Making.steady`.
        """
        draft = Draft(self, recipe, steady=steady)
        draft.add(batch)
        return draft.encoded(batch_size(batch))

    def take_new(self) -> list[NewSamples]:
        """Return the samples that were met for the first time since this was last asked: the caller stores them."""
        new, self._new = self._new, []
        return new

    def leaf(self, value: Any, ids: list[bytes], *, made: bool, steady: bool) -> Any:
        """Return the node of a tensor or array whose rows are samples, its ids appended to `ids`; None if they are none."""
        rows = _rows(value)
        if rows is None:
            return None
        form = self._forms.get((value.dtype, value.shape[1:])) or self._form(value)
        if made and form.pool.seldom:
            return {"$": "made", "dtype": form.dtype, "shape": list(value.shape), "as": form.kind}
        if form.pool.useless(steady=steady):
            self.whole += rows.nbytes
            return None
        numbers, fresh = _number(form.pool, rows)
        if fresh:
            first = form.pool.count - len(fresh)
            self._new.append(NewSamples(form.name, form.dtype, form.shape, first, fresh))
            form.pool.nbytes += len(fresh) * len(fresh[0])
            self.whole += len(fresh) * len(fresh[0])
        ids.append(struct.pack(f"<{len(numbers)}I", *numbers))
        node = {"$": "rows", "pool": form.name, "i": len(ids) - 1, "shape": list(value.shape), "as": form.kind}
        return {**node, **values.beside(value)}

    def _form(self, value: Any) -> _Form:
        tensor = isinstance(value, torch.Tensor)
        dtype = values.dtype_name(value.dtype) if tensor else value.dtype.name
        shape = tuple(value.shape[1:])
        name = f"{dtype}-{'x'.join(map(str, shape))}"
        form = _Form(name, dtype, shape, "tensor" if tensor else "array", self._pools.setdefault(name, _Pool()))
        self._forms[value.dtype, value.shape[1:]] = form
        return form


class Draft:
    """A batch that is encoded piece by piece, each as it is given: the loop may overwrite its tensors afterwards."""

    def __init__(self, encoder: BatchEncoder, recipe: Recipe | None = None, *, steady: bool = False) -> None:
        """With `encoder`, which is told of new samples; `recipe`, `steady`: see `BatchEncoder.encode`."""
        self._encoder = encoder
        self._recipe, self._steady = recipe, steady
        self._made = False
        self._nodes: list[Any] = []
        self._ids: list[bytes] = []
        self._inline: list[bytes | memoryview] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, value: Any) -> None:
        """Encode `value` now."""
        first = len(self._inline)
        self._nodes.append(values.encode(value, self._inline, leaf=self._leaf, of_objects=True))
        for i in range(first, len(self._inline)):
            self._inline[i] = bytes(self._inline[i])

    def _leaf(self, value: Any) -> Any:
        node = self._encoder.leaf(value, self._ids, made=self._recipe is not None, steady=self._steady)
        self._made = self._made or (node is not None and node["$"] == "made")
        return node

    def encoded(self, size: int | None) -> EncodedBatch:
        """Return the batch of `size` samples: what was added, or a list of it where that was more than one piece."""
        node = self._nodes[0] if len(self._nodes) == 1 else self._nodes
        return EncodedBatch(node, self._ids, self._inline, size, self._recipe if self._made else None)


def _number(pool: _Pool, rows: np.ndarray) -> tuple[list[int], list[Buffer]]:
    keys = list(map(xxhash.xxh3_128_digest, rows))
    known = pool.known
    try:
        numbers = list(map(known.__getitem__, keys))
    except KeyError:
        pass
    else:
        pool.met_again += len(numbers)
        return numbers, []
    fresh: list[Buffer] = []
    numbers = []
    for key, row in zip(keys, rows, strict=True):
        number = known.get(key)
        if number is None:
            number = known[key] = pool.count
            pool.count += 1
            fresh.append(memoryview(row.tobytes()))
        else:
            pool.met_again += 1
        numbers.append(number)
    return numbers, fresh


def _rows(value: Any) -> np.ndarray | None:
    """Return `value` as [rows, row], each row in one piece, or None where it is better stored as it is."""
    if isinstance(value, torch.Tensor):
        return _tensor_rows(value)
    if value.ndim < 2 or not value.size or value.nbytes // value.shape[0] < ROW_BYTES or value.dtype.byteorder == ">":
        return None
    if value.dtype.kind not in "biufc":
        return None
    return np.ascontiguousarray(value).reshape(value.shape[0], -1)


def _tensor_rows(value: torch.Tensor) -> np.ndarray | None:
    if value.dtype in _PLAIN:
        try:
            array = np.from_dlpack(value.detach())
        except (TypeError, RuntimeError, BufferError):
            pass  # It lies elsewhere, is sparse, or stands for the conjugate or negative of what lies there.
        else:
            if array.ndim < 2 or not array.size or array.nbytes < ROW_BYTES * len(array):
                return None
            return array if array.ndim == 2 and array.flags.c_contiguous else _in_order(array)
    if value.layout is not torch.strided or value.is_quantized or value.dim() < 2 or not value.numel():
        return None
    if value.element_size() * value.numel() < ROW_BYTES * value.shape[0]:
        return None
    return np.frombuffer(values.tensor_bytes(value), dtype=np.uint8).reshape(value.shape[0], -1)


def _in_order(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(len(array), -1)


def batch_size(batch: Any) -> int | None:
    """Return the number of samples: the first dimension of the first tensor or array in `batch`, else None."""
    if isinstance(batch, (torch.Tensor, np.ndarray)):
        return batch.shape[0] if batch.ndim else None
    children = batch if isinstance(batch, (list, tuple)) else batch.values() if isinstance(batch, Mapping) else ()
    for child in children:
        size = batch_size(child)
        if size is not None:
            return size
    return None
