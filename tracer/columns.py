"""Long lists of things that are made alike, as columns, and back: ten thousand transitions are a few arrays, not as many thousands.

`of` turns a list into a column, a JSON object with `c`, its kind; what stands under `v` as a tensor or array (marked *) is
encoded by `values`:

    {"c": "tensors", "v": *}                 one tensor, stacked along a new first dimension; "arrays" likewise; "strides" of
                                             each where they do not lie in C order
    {"c": "ints" | "floats" | "bools" | "scalars", "v": *}   Python numbers; NumPy scalars
    {"c": "texts", "v": [..]}   {"c": "none"}                strings; None
    {"c": "tuples" | "lists" | "named", "v": [column, ..]}   all of one length: a column per place; "named" has "type"
    {"c": "dicts", "keys": [..], "v": [column, ..]}          all with these keys, in this order
    {"c": "mixed", "which": *, "v": [column, ..]}            which column the next one comes from

Room: tracer. Pure.
"""

from __future__ import annotations

import sys
from collections import deque
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer import strides

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Column = dict[str, Any]

SHORTEST = 64
"""Shorter lists are encoded item by item."""
MOST = 1 << 20
"""Longer ones are not recorded."""
MOST_SINGLY = 4096
"""Nor are those of more things that are not made alike."""
_MOST_MIXED = 16
_LARGEST_COUNT = 1 << 24


def is_long(value: Any) -> bool:
    """Whether `value` is a list that may be encoded as columns."""
    return type(value) in (list, tuple, deque) and SHORTEST <= len(value) <= MOST


def of(items: Sequence[Any]) -> Column | None:
    """Return `items` as a column whose leaves are tensors and arrays; None where they are not made alike."""
    kinds = list(dict.fromkeys(map(type, items)))
    if len(kinds) != 1:
        return _mixed(items, list(map(type, items)), kinds)
    kind = kinds[0]
    if kind in _MAKERS:
        return _MAKERS[kind](items)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _records(items, "named", type=type_name(kind))
    return _scalars(items) if issubclass(kind, np.generic) else None


def named_type(name: str) -> type | None:
    """Return the type of named tuples that the program's modules have under `name`; None where there is none."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:end]))
        for part in parts[end:]:
            # Not by getattr: a name in a trace would run a lazy module's own, or a property.
            found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
        if (
            isinstance(found, type)
            and issubclass(found, tuple)
            and hasattr(found, "_make")
            and type_name(found) == name
        ):
            return found
    return None


def type_name(kind: type) -> str:
    """The name by which a named tuple's type is recorded."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _mixed(items: Sequence[Any], keys: list[Any], kinds: list[Any]) -> Column | None:
    if not 1 < len(kinds) <= _MOST_MIXED:
        return None
    index = {kind: i for i, kind in enumerate(kinds)}
    which = np.array([index[key] for key in keys], np.uint8)
    columns = [of([item for item, key in zip(items, keys, strict=True) if key == kind]) for kind in kinds]
    return {"c": "mixed", "which": which, "v": columns} if None not in columns else None


def _tensors(items: Sequence[torch.Tensor]) -> Column | None:
    if any(t.layout is not torch.strided or t.requires_grad or t.is_quantized or t.is_nested for t in items):
        return None
    lying = [strides.of_tensor(t) for t in items]
    keys = [(t.dtype, t.shape, t.device, s and tuple(s)) for t, s in zip(items, lying, strict=True)]
    kinds = list(dict.fromkeys(keys))
    if len(kinds) > 1:
        return _mixed(items, keys, kinds)
    if kinds[0][2].type == "meta":
        return None
    with torch.no_grad():
        stacked = {"c": "tensors", "v": torch.stack(list(items))}
    return stacked if lying[0] is None else {**stacked, "strides": lying[0]}


def _arrays(items: Sequence[np.ndarray]) -> Column | None:
    keys = [(a.dtype, a.shape) for a in items]
    kinds = list(dict.fromkeys(keys))
    if len(kinds) > 1:
        return _mixed(items, keys, kinds)
    dtype, shape = kinds[0]
    return {"c": "arrays", "v": np.stack(items)} if shape and _is_usual(dtype) else None


def _scalars(items: Sequence[np.generic]) -> Column | None:
    dtypes = {item.dtype for item in items}
    dtype = dtypes.pop()
    return {"c": "scalars", "v": np.array(items, dtype)} if not dtypes and _is_usual(dtype) else None


def _is_usual(dtype: np.dtype) -> bool:
    return dtype.isnative and dtype.kind in "biufc"


def _ints(items: Sequence[int]) -> Column | None:
    try:
        return {"c": "ints", "v": np.array(items, np.int64)}
    except OverflowError:
        return None


def _records(items: Sequence[Any], kind: str, **more: Any) -> Column | None:
    lengths = list(map(len, items))
    kinds = list(dict.fromkeys(lengths))
    if len(kinds) > 1:
        return _mixed(items, lengths, kinds)
    columns = [of(column) for column in zip(*items, strict=True)]
    return {"c": kind, "v": columns, **more} if None not in columns else None


def _dicts(items: Sequence[dict[Any, Any]]) -> Column | None:
    keys = list(map(tuple, items))
    kinds = list(dict.fromkeys(keys))
    if len(kinds) > 1:
        return _mixed(items, keys, kinds)
    columns = [of([item[key] for item in items]) for key in kinds[0]]
    usual = all(type(key) in (str, int) for key in kinds[0])
    return {"c": "dicts", "keys": list(kinds[0]), "v": columns} if usual and None not in columns else None


_MAKERS: dict[type, Callable[[Any], Column | None]] = {
    torch.Tensor: _tensors,
    np.ndarray: _arrays,
    int: _ints,
    float: lambda items: {"c": "floats", "v": np.array(items, np.float64)},
    bool: lambda items: {"c": "bools", "v": np.array(items, np.bool_)},
    str: lambda items: {"c": "texts", "v": list(items)},
    type(None): lambda items: {"c": "none"},
    tuple: lambda items: _records(items, "tuples"),
    list: lambda items: _records(items, "lists"),
    dict: _dicts,
}


def leaves(column: Column, change: Callable[[Any], Any]) -> Column:
    """Return `column` with `change` applied to what is a tensor or array in it, or stands for one."""
    kind, result = column["c"], dict(column)
    if kind in _OF_COLUMNS:
        result["v"] = [leaves(inner, change) for inner in column["v"]]
        if kind == "mixed":
            result["which"] = change(column["which"])
    elif kind not in ("none", "texts"):
        result["v"] = change(column["v"])
    return result


_OF_COLUMNS = frozenset(("tuples", "lists", "named", "dicts", "mixed"))


def items_of(column: Column, count: int, types: Callable[[str], type | None]) -> list[Any]:
    """Return the `count` items of which `column` was made; each owns its memory. `types` finds the type of named tuples.

    Raise ValueError, TypeError or LookupError where `column` is none that `of` makes.
    """
    if not 0 <= count <= _LARGEST_COUNT:
        raise ValueError(f"a list of {count}")
    items = _items_of(column, count, types)
    if len(items) != count:
        raise ValueError(f"{len(items)} items of {count}")
    return items


def _items_of(column: Column, count: int, types: Callable[[str], type | None]) -> list[Any]:
    kind = column["c"]
    if kind not in _OF_COLUMNS:
        return _LEAVES[kind](column, count)
    if kind == "mixed":
        which = column["which"].tolist()
        parts = [iter(items_of(inner, which.count(i), types)) for i, inner in enumerate(column["v"])]
        return [next(parts[i]) for i in which]
    columns = [items_of(inner, count, types) for inner in column["v"]]
    rows = list(zip(*columns, strict=True)) if columns else [()] * count
    if kind == "dicts":
        return [dict(zip(column["keys"], row, strict=True)) for row in rows]
    if kind == "lists":
        return list(map(list, rows))
    made = types(column["type"]) if kind == "named" else None
    return rows if made is None else list(map(made._make, rows))


_LEAVES: dict[str, Callable[[Column, int], list[Any]]] = {
    "tensors": lambda column, count: [
        strides.laid_tensor(row.clone(), column.get("strides")) for row in column["v"].unbind(0)
    ],
    "arrays": lambda column, count: [row.copy() for row in column["v"].reshape(count, *column["v"].shape[1:])],
    "scalars": lambda column, count: list(column["v"]),
    "ints": lambda column, count: column["v"].tolist(),
    "floats": lambda column, count: column["v"].tolist(),
    "bools": lambda column, count: column["v"].tolist(),
    "texts": lambda column, count: column["v"],
    "none": lambda column, count: [None] * count,
}
