"""Libraries whose own code opens the files that they are given the names of: the names are changed to where the sandbox keeps them.

Each is patched when the program imports it, or at once where it is imported already. What is not here the fence refuses.
Room: replay. May touch: those libraries, in an engine's process only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class Places(Protocol):
    """Where files are, for a program whose writes are redirected."""

    def for_reading(self, path: Any) -> Any: ...

    def for_writing(self, path: Any, *, keep: bool, held: bool = False) -> Any: ...


def _read_first(places: Places, original: Callable[..., Any]) -> Callable[..., Any]:
    def read(path: Any, *args: Any, **kwargs: Any) -> Any:
        return original(places.for_reading(path), *args, **kwargs)

    return read


def _read_static(places: Places, original: Callable[..., Any]) -> Any:
    return staticmethod(_read_first(places, original))


def _write_first(places: Places, original: Callable[..., Any]) -> Callable[..., Any]:
    def write(path: Any, *args: Any, **kwargs: Any) -> Any:
        return original(places.for_writing(path, keep=False), *args, **kwargs)

    return write


def _write_second(places: Places, original: Callable[..., Any]) -> Callable[..., Any]:
    def write(what: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        return original(what, places.for_writing(path, keep=False), *args, **kwargs)

    return write


def _database(places: Places, original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(database: Any, *args: Any, **kwargs: Any) -> Any:
        named = str(database) not in ("", ":memory:") and not kwargs.get("uri")
        return original(places.for_writing(database, keep=True, held=True) if named else database, *args, **kwargs)

    return connect


def _by_mode(places: Places, original: Callable[..., Any]) -> Callable[..., Any]:
    """h5py: the name comes as bytes, the mode says whether it is written."""

    def make(name: bytes, mode: str, *args: Any, **kwargs: Any) -> Any:
        path = os.fsdecode(name)
        place = places.for_reading(path) if mode == "r" else places.for_writing(path, keep=mode != "w", held=True)
        return original(os.fsencode(place), mode, *args, **kwargs)

    return make


def _unlocked(places: Places, original: Callable[..., Any]) -> Callable[..., Any]:
    """lmdb: one that is only read needs no lock, whose file it would write."""

    def open_(path: Any, *args: Any, **kwargs: Any) -> Any:
        return original(path, *args, **{**kwargs, "lock": False} if kwargs.get("readonly") else kwargs)

    return open_


PATCHES: dict[str, list[tuple[str, Any]]] = {
    "safetensors": [("safe_open", _read_first), ("_safe_open_handle", _read_first), ("serialize_file", _write_second)],
    "cv2": [("imread", _read_first), ("imwrite", _write_first)],
    "h5py._hl.files": [("make_fid", _by_mode)],
    "sqlite3": [("connect", _database)],
    "sqlite3.dbapi2": [("connect", _database)],
    "lmdb": [("open", _unlocked)],
    "tokenizers": [("Tokenizer.save", _write_second), ("Tokenizer.from_file", _read_static)],
}


@contextlib.contextmanager
def redirected(places: Places) -> Iterator[None]:
    """Patch what is imported, and what will be while the block runs."""
    with contextlib.ExitStack() as stack:
        for name in PATCHES:
            if name in sys.modules:
                _patch(sys.modules[name], places, stack)
        finder = _AtImport(places, stack)
        sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
        stack.callback(sys.meta_path.remove, finder)
        yield


def _patch(module: ModuleType, places: Places, stack: contextlib.ExitStack) -> None:
    for path, wrap in PATCHES[module.__name__]:
        within, _, name = path.rpartition(".")
        owner = getattr(module, within, None) if within else module
        original = getattr(owner, name, None)
        if original is not None:
            setattr(owner, name, wrap(places, original))
            stack.callback(setattr, owner, name, original)


class _AtImport:
    """Finds nothing itself: of the modules to patch, it has their own loader do so once it has run them."""

    def __init__(self, places: Places, stack: contextlib.ExitStack) -> None:
        self._places, self._stack = places, stack
        self._looking: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As importlib asks."""
        if name not in PATCHES or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.discard(name)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _patch(module, self._places, self._stack)

            loader.exec_module = exec_module
        return spec
