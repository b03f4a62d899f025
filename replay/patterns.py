"""Patterns for recorded batches that have types of the program's own: what its loader gives, fetched once and copied.

Room: replay. May touch: the program's loader, once for each make of batch; the random generators stay as they are.
"""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any

from tracer import rng

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Patterns:
    """By what types of the program's a stored batch has; a batch that cannot be copied is fetched each time."""

    def __init__(self) -> None:
        """None was fetched yet."""
        self._known: dict[tuple[str, ...], Any] = {}

    def of(self, node: Any, native: Callable[[], Any]) -> Any:
        """Return a batch of the program's own, to be filled with what `node` says; None where that has no types of its own."""
        types = tuple(own_types(node))
        if not types:
            return None
        if types not in self._known:
            before = rng.capture_state()
            fetched = native()
            rng.restore_state(before)
            copied = _copied(fetched)
            if copied is None:
                return fetched
            self._known[types] = copied
        return _copied(self._known[types])


def _copied(batch: Any) -> Any:
    copies: dict[int, Any] = {}
    try:
        copied = copy.deepcopy(batch, copies)
    except Exception:  # noqa: BLE001  whatever a class of the user's raises
        return None
    for each in list(copies.values()):
        _lead_to(copies, each)
    return copied


def _lead_to(copies: dict[int, Any], holder: Any) -> None:
    """A weak reference is not copied: where it led to what was, it leads to the copy."""
    for name, item in list(getattr(holder, "__dict__", {}).items()):
        target = item() if type(item) is weakref.ref else None
        if id(target) in copies and target is not None:
            object.__setattr__(holder, name, weakref.ref(copies[id(target)]))


def own_types(node: Any) -> Iterator[str]:
    """The named tuples and objects in a stored batch, whose types only the program knows, in order."""
    if isinstance(node, dict):
        if node.get("$") in ("named", "object"):
            yield f"{node['$']} {node.get('type')}"
        for value in node.values():
            yield from own_types(value)
    elif isinstance(node, list):
        for value in node:
            yield from own_types(value)
