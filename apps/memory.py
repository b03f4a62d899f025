"""The memory of the app's process: what it frees goes back to the system, as far as the C library lets it.

Room: apps. May touch: the allocators of this process.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

import pyarrow as pa


def give_back() -> None:
    """What was held and freed goes back to the system, where the C library keeps it (glibc does)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_ARENAS, _TRIMS, _MAPS = -8, -1, -3
"""What glibc's mallopt calls them: how many heaps, from how much on what is free at the end of one is given back, and from how
much on memory is mapped by itself."""


def frugal() -> None:
    """From here on this process gives back what it frees, as far as the C library lets it: large arrays lie by themselves, and
    not in heaps that threads share out; Arrow keeps no pool of its own. For a process of ours alone: a page takes a third less."""
    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for what, value in ((_ARENAS, 2), (_TRIMS, 128 << 10), (_MAPS, 256 << 10)):
            library.mallopt(what, value)
