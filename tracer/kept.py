"""What a reader keeps in memory of what it has read: bounded, the least recently used goes first.

Room: tracer. Touches nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Kept:
    """Values by key, of `limit` in all: bytes, or however their sizes are counted. Threads may share it."""

    def __init__(self, limit: int) -> None:
        """Nothing is kept yet."""
        self._limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.size = 0
        """What is kept now, in the unit of `limit`; never more than it."""

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """Return the value of `key`; where it is not kept, `make` gives it and its size. What `make` raises is raised."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value, size = make()
        self.put(key, value, size)
        return value

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep `value` in the place of what `key` had; one that is larger than the limit is not kept."""
        with self._lock:
            self.size -= self._values.pop(key, (None, 0))[1]
            if size > self._limit:
                return
            self._values[key] = (value, size)
            self.size += size
            while self.size > self._limit:
                self.size -= self._values.popitem(last=False)[1][1]

    def drop(self, key: Hashable) -> None:
        """Forget the value of `key`, if there is one."""
        with self._lock:
            self.size -= self._values.pop(key, (None, 0))[1]
