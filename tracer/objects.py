"""Objects as data: what a batch of a class of its own consists of (a graph, a dataclass, a tokenizer's output), and put back.

Only an object that is its attributes all through is taken apart: Python classes, no memory of a C type's beside. Nothing of a
class is run, but what `copy` of a batch runs in the program itself.
Room: tracer. May touch: the objects it is given (`put` only).
"""

from __future__ import annotations

import types
import weakref
from typing import Any

import torch

_HEAP_TYPE = 1 << 9
_STRUCTURE = (weakref.ref, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type)
"""No data of the object: what leads elsewhere, and code."""
_LIVING = (torch.nn.Module, torch.optim.Optimizer, torch.utils.data.Dataset, torch.utils.data.DataLoader, BaseException)
_SMALL = object.__basicsize__ + 16
"""A Python object and its two pointers: to its attributes, to what refers to it weakly."""


def fields(value: Any) -> dict[str, Any] | None:
    """Return the attributes of `value` that are data; None where it is not its attributes alone."""
    cls = type(value)
    if isinstance(value, (*_STRUCTURE, *_LIVING)) or not cls.__flags__ & _HEAP_TYPE:
        return None
    slots = [name for base in cls.__mro__ for name in _slots(base)]
    if cls.__basicsize__ > _SMALL + 8 * len(slots) or cls.__itemsize__:
        return None
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)} | dict(
        getattr(value, "__dict__", {})
    )
    return {name: item for name, item in found.items() if not isinstance(item, _STRUCTURE)}


def _slots(cls: type) -> list[str]:
    found = cls.__dict__.get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return [
        f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def put(live: Any, new: dict[str, Any]) -> None:
    """Give `live` the attributes `new`, and none beside them that is data."""
    for name in (fields(live) or {}).keys() - new.keys():
        object.__delattr__(live, name)
    for name, value in new.items():
        object.__setattr__(live, name, value)
