"""A fence around the process that re-executes, kept by the kernel: what native code and child processes write elsewhere is refused.

The sandbox redirects what Python opens; this is for what it does not see. Linux's Landlock is used where the kernel has it (5.19 or
newer, no privilege needed); elsewhere there is no fence. It holds for this process and all that it starts, and cannot be taken down.
Room: replay. May touch: what this process may write, for good.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""System calls; the same numbers on every architecture but alpha."""
_ASK_VERSION = 1
_NO_NEW_PRIVILEGES = 38
_BENEATH = 1
_WRITE_FILE = 1 << 1
_FOLDERS = sum(1 << bit for bit in range(4, 13))
"""Remove folders and files; make devices, folders, files, sockets, pipes and links."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_OF_FILES = _WRITE_FILE | _TRUNCATE


def version() -> int:
    """What the kernel offers: 0 where there is nothing, 2 and more where a fence can be put up."""
    if not sys.platform.startswith("linux") or platform.machine() == "alpha":
        return 0
    return max(0, _call(_CREATE, None, 0, _ASK_VERSION))


def put_up(scratch: Path, writable: Iterable[str] = ()) -> bool:
    """From now on this thread and what it starts writes only in `scratch`, the `writable` folders, caches and devices.

    Return whether the kernel does it; call it before there are other threads.
    """
    offered = version()
    if offered < 2:
        return False  # without the right to refer nothing can be moved from folder to folder, even within the scratch
    rights = _WRITE_FILE | _FOLDERS | _REFER | (_TRUNCATE if offered >= 3 else 0)
    handled = struct.pack("=Q", rights)
    rules = _call(_CREATE, handled, len(handled), 0)
    if rules < 0:
        return False
    try:
        for place in (str(scratch), *map(_existing, writable), *_caches(), "/dev", "/proc"):
            _allow(rules, place, rights)
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and _call(_RESTRICT, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(rules: int, place: str, rights: int) -> None:
    try:
        folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = struct.pack("=Qi", rights if os.path.isdir(place) else rights & _OF_FILES, folder)
        _call(_ADD, rules, _BENEATH, rule, 0)
    finally:
        os.close(folder)


def _existing(place: str) -> str:
    """The folder in which `place` is to be made, where it is not there yet."""
    while not os.path.isdir(place) or not os.listdir(place):
        place = os.path.dirname(place)
    return place


def _caches() -> list[str]:
    """Where compilers and drivers keep what they can make again."""
    home = os.path.expanduser("~")
    named = [
        os.environ.get(name)
        for name in ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
    ]
    own = [os.path.join(home, name) for name in (".cache", ".triton", ".nv", ".keras")]
    made = [str(found) for found in Path(tempfile.gettempdir()).glob("torchinductor_*")]
    return [place for place in (*named, *own, *made) if place]


def _call(number: int, *arguments: bytes | int | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc.syscall(ctypes.c_long(number), *map(_argument, arguments))


def _argument(value: bytes | int | None) -> ctypes.c_long | ctypes.c_char_p | None:
    return ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value)
