"""How far the program's own loops are: what is left of the `for` loops around a step.

Room: tracer. Reads the frames it is given; moves nothing.
"""

from __future__ import annotations

import gc
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer import frames

if TYPE_CHECKING:
    from tracer.frames import UserFrame

_COUNTED = (type(iter(range(0))), type(iter([])), type(iter(())))
_WRAPPERS = (enumerate, zip, map, filter)
_DEEPEST = 4


@dataclass(frozen=True)
class Loop:
    """A loop whose end is known: its iterator's identity, passes `left` after this one, `total` ones if it says."""

    which: int
    left: int
    total: int | None


def around(stack: list[UserFrame], driver: Any) -> list[Loop] | None:
    """Return the counted loops around the one that iterates `driver`, innermost first, as `stack` is.

    None if no loop of these frames iterates `driver`, or if `driver` is None.
    """
    found = every(stack)
    inner = [i for i, iterator in enumerate(found) if driver is not None and _iterates(iterator, driver, 0)]
    return counted(found[inner[-1] + 1 :]) if inner else None


def every(stack: list[UserFrame]) -> list[Any]:
    """Return what the program's loops under way iterate, innermost first; other values on their stacks are among it."""
    return [iterator for user in stack for iterator in frames.stack_values(user.frame)[::-1]]


def counted(iterators: list[Any]) -> list[Loop]:
    """Return those whose end is known."""
    known = [(iterator, _left(iterator, 0)) for iterator in iterators]
    return [Loop(id(iterator), left, _total(iterator)) for iterator, left in known if left is not None]


def _total(iterator: Any) -> int | None:
    """A range's iterator knows where it began before Python 3.12 only."""
    state = iterator.__reduce__() if isinstance(iterator, _COUNTED) else ()
    return len(state[1][0]) if len(state) > 2 and state[2] is not None else None


def _inner(iterator: Any) -> list[Any]:
    frame = getattr(iterator, "gi_frame", None)
    if frame is not None:
        return frames.stack_values(frame)
    inner = gc.get_referents(iterator) if isinstance(iterator, _WRAPPERS) else []
    return [*inner, *(item for each in inner if isinstance(each, tuple) for item in each)]  # zip keeps a tuple of them


def _iterates(iterator: Any, driver: Any, depth: int) -> bool:
    if iterator is driver:
        return True
    return depth < _DEEPEST and any(_iterates(inner, driver, depth + 1) for inner in _inner(iterator))


def _left(iterator: Any, depth: int) -> int | None:
    if isinstance(iterator, _COUNTED):
        return operator.length_hint(iterator)
    if depth >= _DEEPEST:
        return None
    return min((left for i in _inner(iterator) if (left := _left(i, depth + 1)) is not None), default=None)
