"""Values of kinds of their own as plain parts, and made of them again: NumPy's records, PIL's pictures, nested and CSR tensors.

Room: tracer. Pure.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Parts = tuple[str, list[Any]]

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_BY_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_LAYOUTS = {str(layout): layout for layout in (*_COMPRESSED, torch.strided, torch.jagged)}
_MODES = frozenset(("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"))
"""Pictures that are their pixels: others have a palette beside them."""


def parts(value: Any) -> Parts | None:
    """Return the kind of `value` and what it consists of; None where it is none of these."""
    if isinstance(value, torch.Tensor):
        return _parts_of_tensor(value)
    if isinstance(value, (np.ndarray, np.void)):
        return _parts_of_records(value)
    images = sys.modules.get("PIL.Image")
    if images is not None and isinstance(value, images.Image) and value.mode in _MODES:
        return _parts_of_picture(value)
    return None


def _parts_of_tensor(value: torch.Tensor) -> Parts | None:
    value = value.detach()
    if value.is_nested:
        return "nested", [str(value.layout), list(value.unbind())]
    if value.layout not in _COMPRESSED:
        return None
    rows = value.layout in _BY_ROWS
    starts = value.crow_indices() if rows else value.ccol_indices()
    places = value.col_indices() if rows else value.row_indices()
    return "compressed", [str(value.layout), list(value.shape), starts, places, value.values()]


def _parts_of_records(value: np.ndarray | np.void) -> Parts | None:
    if value.dtype.names is None or value.dtype.hasobject:
        return None
    return "records", [np.lib.format.dtype_to_descr(value.dtype), list(value.shape), value.tobytes()]


def _parts_of_picture(value: Any) -> Parts | None:
    try:
        return "picture", [value.mode, list(value.size), value.tobytes()]
    except OSError:
        return None  # It is read when it is first looked at, and cannot be.


def made(kind: str, found: list[Any]) -> Any:
    """Return the value of `kind` that consists of `found`. Raise LookupError, TypeError, ValueError or RuntimeError."""
    return _MAKERS[kind](*found)


def _made_records(described: Any, shape: list[int], data: bytes) -> Any:
    array = np.frombuffer(bytearray(data), np.lib.format.descr_to_dtype(_in_tuples(described))).reshape(shape)
    return array if shape else array[()]


def _in_tuples(described: Any) -> Any:
    """NumPy's description of records has tuples where JSON has lists: for each field, and for its shape."""
    if not isinstance(described, list):
        return described
    return [(name, _in_tuples(kind), *map(tuple, more)) for name, kind, *more in described]


def _made_picture(mode: str, size: list[int], data: bytes) -> Any:
    try:
        images = importlib.import_module("PIL.Image")
    except ImportError:
        raise ValueError("Pillow is not installed here: a picture of it cannot be made") from None
    return images.frombytes(mode, tuple(size), data)


def _made_compressed(layout: str, shape: list[int], *tensors: torch.Tensor) -> torch.Tensor:
    return torch.sparse_compressed_tensor(*tensors, size=shape, layout=_LAYOUTS[layout], check_invariants=True)


def _made_nested(layout: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(tensors, layout=_LAYOUTS[layout])


_MAKERS: dict[str, Callable[..., Any]] = {
    "records": _made_records,
    "picture": _made_picture,
    "compressed": _made_compressed,
    "nested": _made_nested,
}
