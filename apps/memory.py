"""The memory of the app's process: what it frees goes back to the system, as far as the C library lets it.

Room: apps. May touch: the allocators of this process.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from typing import Final

import pyarrow as pa

GONE: Final = 2.0
"""Seconds after the end of a page until Bokeh and Panel have let go of all that is its."""


def give_back() -> None:
    """What is garbage, or was freed, goes back to the system; of what the C library keeps, where it is glibc.

    Python itself looks for old garbage only when a quarter as many objects have come as there are, some 100,000: for hours
    a page's old models would lie there, and a closed page whole.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_later(seconds: float = GONE) -> None:
    """Give back then, in a thread of its own."""
    timer = threading.Timer(seconds, give_back)
    timer.name, timer.daemon = "rewind-give-back", True
    timer.start()


def settled() -> None:
    """All that is there now, modules above all, stays: it is no garbage, and is not looked at again in search of some.

    So a search takes a few milliseconds, and Python itself makes one as soon as a page has left a quarter of its own.
    """
    gc.collect()
    gc.freeze()


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
