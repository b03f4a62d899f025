"""Which files of a folder are opened while something runs, by whatever code, native code too: what a question never opens
cannot change its answer. Linux tells by inotify; elsewhere nobody knows."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_IN_OPEN = 0x20
_IN_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")


def opened(folder: Path, act: Callable[[], object]) -> set[Path] | None:
    """The files under `folder` that `act` opens, relative to it; None where that cannot be told."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        return None
    try:
        folders = [folder, *(place for place in folder.rglob("*") if place.is_dir())]
        watched = {libc.inotify_add_watch(descriptor, os.fsencode(place), _IN_OPEN): place for place in folders}
        if -1 in watched:
            return None
        act()
        return {(watched[watch] / name).relative_to(folder) for watch, name in _events(descriptor) if name}
    finally:
        os.close(descriptor)


def _events(descriptor: int) -> set[tuple[int, str]]:
    found = set()
    while True:
        try:
            data = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return found
        while data:
            watch, mask, _, size = _EVENT.unpack_from(data)
            assert not mask & _IN_OVERFLOW, "more was opened than the kernel keeps count of"
            found.add((watch, data[_EVENT.size :][:size].rstrip(b"\0").decode()))
            data = data[_EVENT.size + size :]
