"""What a trace stored, as tensors again: states, gradients, batches.

Room: tracer. Pure, but for the readers it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer import values
from tracer.arrays import numpy_type
from tracer.errors import DamageError, MissingDataError, NameUnknownError

if TYPE_CHECKING:
    from tracer.packing import Entry, PackedLayout

Rows = Callable[[str, np.ndarray], memoryview]
"""(pool, ids) -> the bytes of those samples, one after the other."""


class State(Mapping[str, torch.Tensor]):
    """The tensors of one state, by the names of `state_dict()`; they own their memory."""

    def __init__(self, step: int, fingerprint: str | None, tensors: Mapping[str, torch.Tensor]) -> None:
        """`fingerprint`: 16 hex digits; None where it is not known. `tensors` are its own from now on."""
        self.step = step
        self.fingerprint = fingerprint
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            known = ", ".join(list(self._tensors)[:8])
            raise NameUnknownError(f"no tensor {name!r}: there are {known}", step=self.step, tensor=name) from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"State(step={self.step}, fingerprint={self.fingerprint}, {len(self)} tensors)"


class Copies(Mapping[str, torch.Tensor]):
    """The tensors of a packed state, each copied from there when it is first asked for."""

    def __init__(self, layout: PackedLayout, packed: bytes) -> None:
        """`layout` says how `packed` is."""
        self._entries = {entry.name: entry for entry in layout.entries}
        self._packed = packed
        self._copied: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._copied:
            entry = self._entries[name]
            part = np.frombuffer(self._packed, np.uint8, entry.nbytes, entry.offset).copy()
            self._copied[name] = _shaped(torch.from_numpy(part), entry)
        return self._copied[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def unpack(layout: PackedLayout, words: np.ndarray, *, only_params: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a packed state: they share `words`, or one copy of it where it cannot be written."""
    whole = torch.from_numpy((words if words.flags.writeable else words.copy()).view(np.uint8))
    return {e.name: _tensor(whole, e) for e in layout.entries if e.param or not only_params}


def _tensor(whole: torch.Tensor, entry: Entry) -> torch.Tensor:
    data = whole[entry.offset : entry.offset + entry.nbytes]
    if entry.offset % values._dtype(entry.dtype).itemsize:
        data = data.clone()  # complex128 may lie at a multiple of 8
    return _shaped(data, entry)


def _shaped(data: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The tensor of `entry` whose bytes are `data`."""
    dtype = values._dtype(entry.dtype)
    return data.view(dtype).reshape(entry.shape) if entry.nbytes else torch.empty(entry.shape, dtype=dtype)


def array(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return bytes [T, n] as [T, *shape] of the NumPy type of `dtype`, torch's own name.

    bfloat16 becomes float32, complex32 complex64; what NumPy lacks besides stays bytes, or words.
    """
    steps = data.shape[0]
    flat = np.ascontiguousarray(data).reshape(-1)
    if dtype == "bfloat16":
        return (flat.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(steps, *shape)
    if dtype == "complex32":
        return flat.view(np.float16).astype(np.float32).view(np.complex64).reshape(steps, *shape)
    return flat.view(numpy_type(dtype)).reshape(steps, *shape)


def batch(
    node: Any,
    inline: list[bytes],
    ids: Callable[[int], bytes],
    rows: Rows,
    template: Any = None,
    *,
    leaves: bool = False,
) -> Any:
    """Return the batch whose stored form is `node`: leaves that are lists of sample ids are gathered from `rows`.

    Named tuples take their types from `template`, a batch of the same structure, where there is one. Raise MissingDataError
    where only how it was made is stored. `leaves`: for a program that runs, tensors that needed gradients do so again.
    """
    buffers: list[bytes | memoryview] = list(inline)

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(p) for p in part]
        if not isinstance(part, dict):
            return part
        if part.get("$") == "made":
            raise MissingDataError("the batch was not stored: by re-execution it is made again, as the loader made it")
        if part.get("$") == "rows":
            buffers.append(rows(part["pool"], np.frombuffer(ids(part["i"]), np.uint32)))
            return _gathered(part, len(buffers) - 1)
        return {key: resolve(value) for key, value in part.items()}

    try:
        return values.decode(resolve(node), buffers.__getitem__, template, leaves=leaves)
    except IndexError as error:
        raise DamageError(f"a batch names a buffer that is not there: {error}") from None


def _gathered(part: dict[str, Any], buffer: int) -> dict[str, Any]:
    dtype = part.get("dtype") or part["pool"].partition("-")[0]
    facts = {"b": buffer, "shape": part["shape"], **{key: part[key] for key in values.BESIDE if key in part}}
    if part.get("as", "tensor") == "tensor":
        grad, device = part.get("grad", False), part.get("device", "cpu")
        return {"$": "tensor", "dtype": dtype, "grad": grad, "device": device, **facts}
    return {"$": "array", "dtype": np.dtype(dtype).str, **facts}


def split(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """Return the buffers of `sizes` bytes that lie one after the other in `data`."""
    parts, place = [], 0
    for size in sizes:
        parts.append(data[place : place + size])
        place += size
    return parts


def row_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of one tensor of `dtype` (torch's name) and `shape`."""
    return values._dtype(dtype).itemsize * math.prod(shape)
