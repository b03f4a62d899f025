"""The positions of a loop's own iterators (`range`, `enumerate`, lists, tuples), read and put back.

A `for` loop keeps its iterator on the frame's value stack, out of reach of the program; the garbage collector sees it there. Most
positions are set through the iterator's own `__setstate__`; a `range` of Python 3.12 and later can only go forward that way, and
`enumerate` has none, so these are written in memory: only after the same place, read in memory, gave the value that
the iterator itself reports.
Room: tracer. May touch: the iterators it is given.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

_RANGE = type(iter(range(0)))
_LIST = type(iter([]))
_TUPLE = type(iter(()))
POSITIONED = (_RANGE, _LIST, _TUPLE, enumerate, itertools.count)
UNPLACED = (
    itertools.cycle,
    itertools.chain,
    itertools.islice,
    itertools.repeat,
    itertools.product,
    itertools.accumulate,
)
"""Iterators whose place cannot be set: with one of them in a loop, a replay starts from the program's start."""
_BASE = object.__basicsize__


def position(iterator: Any) -> Any:
    """Return where `iterator` stands, as JSON, or None if it has no position that can be put back."""
    if isinstance(iterator, _RANGE):
        return _range_position(iterator)
    if isinstance(iterator, enumerate):
        return {"count": iterator.__reduce__()[1][1]}
    if isinstance(iterator, itertools.count):
        start, *step = iterator.__reduce__()[1]
        return {"at": start, "by": step[0] if step else 1} if isinstance(start, int) else None
    if isinstance(iterator, (_LIST, _TUPLE)):
        state = iterator.__reduce__()
        return {"index": state[2] if len(state) > 2 else None}
    return None


def _range_position(iterator: Any) -> dict[str, int]:
    state = iterator.__reduce__()
    span = state[1][0]
    done = (state[2] or 0) if len(state) > 2 else 0
    return {"next": span.start + done * span.step, "left": len(span) - done, "step": span.step}


def put_position(iterator: Any, recorded: Any) -> bool:
    """Put `iterator` where `recorded` says; return whether it stands there now."""
    if position(iterator) == recorded:
        return True
    if isinstance(iterator, _RANGE):
        _put_range(iterator, recorded)
    elif isinstance(iterator, enumerate):
        _put_word(iterator, 0, iterator.__reduce__()[1][1], recorded["count"])
    elif isinstance(iterator, itertools.count):
        _put_word(iterator, 0, iterator.__reduce__()[1][0], recorded["at"])
    elif recorded.get("index") is not None:
        iterator.__setstate__(recorded["index"])
    return position(iterator) == recorded


def sequence(iterator: Any) -> Any:
    """Return the list or tuple that `iterator` goes through, or None."""
    return iterator.__reduce__()[1][0] if isinstance(iterator, (_LIST, _TUPLE)) else None


def put_sequence(iterator: Any, new: Any) -> None:
    """Let `iterator` go through `new` (of the type that it goes through now) from now on."""
    old = sequence(iterator)
    if type(new) is type(old) and _word(iterator, 1) == id(old):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(new))
        _put_word(iterator, 1, id(old), id(new))
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(old))


def _put_range(iterator: Any, recorded: dict[str, int]) -> None:
    state = iterator.__reduce__()
    span = state[1][0]
    if len(state) > 2 and state[2] is not None and _word(iterator, 0) == state[2]:  # 3.11: index, start, step, len
        iterator.__setstate__((recorded["next"] - span.start) // span.step if span.step else 0)
        return
    here = _range_position(iterator)  # 3.12 and later: start, step, len
    _put_word(iterator, 0, here["next"], recorded["next"])
    _put_word(iterator, 2, here["left"], recorded["left"])


def _word(obj: Any, index: int) -> int:
    return ctypes.c_ssize_t.from_address(id(obj) + _BASE + index * ctypes.sizeof(ctypes.c_ssize_t)).value


def _put_word(obj: Any, index: int, expected: int, new: int) -> None:
    cell = ctypes.c_ssize_t.from_address(id(obj) + _BASE + index * ctypes.sizeof(ctypes.c_ssize_t))
    if cell.value == expected:
        cell.value = new
