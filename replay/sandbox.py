"""A replayed script must not overwrite what the original run wrote: its writes go to a scratch folder, trackers are put offline.

What is written is kept under the scratch folder by its full path, and read from there again. Deleting and renaming act there, too.
Folders are listed with both. Writes by native code that opens files by itself are not seen, but for those of torch and safetensors.
Room: replay. May touch: `open`, some of `os`, torch and safetensors, environment variables, in an engine's own process only.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_OFFLINE = {
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_TRACKING_URI": "",
}
_DEVICES = ("/dev/", "/proc/", "/sys/")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Sandbox:
    """Redirects the writes of this process to `scratch`."""

    def __init__(self, scratch: Path, writable: Sequence[str] = ()) -> None:
        """`scratch` exists and is ours; so are the `writable` folders: a branch that is being recorded."""
        self._scratch = str(scratch.resolve())
        self._writable = tuple(os.path.abspath(folder) for folder in writable)
        self._files = os.path.join(self._scratch, "files")
        self._gone: set[str] = set()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Redirect while the block runs."""
        os.makedirs(self._files, exist_ok=True)
        (Path(self._scratch) / "tmp").mkdir(exist_ok=True)
        os.environ.update(_OFFLINE, MLFLOW_TRACKING_URI=f"file://{self._scratch}/mlflow")
        tempfile.tempdir = os.path.join(self._scratch, "tmp")
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, tempfile, "tempdir", None)
            for owner, name, make in self._patches():
                original = getattr(owner, name)
                setattr(owner, name, make(original))
                stack.callback(setattr, owner, name, original)
            yield

    def _patches(self) -> list[tuple[Any, str, Callable[[Any], Any]]]:
        opening = [(builtins, "open", self._open), (io, "open", self._open), (os, "open", self._os_open)]
        making = [(os, name, self._into) for name in ("mkdir", "chmod", "utime", "truncate")]
        removing = [(os, name, self._remove) for name in ("remove", "unlink", "rmdir")]
        moving = [(os, name, self._move) for name in ("rename", "replace")]
        linking = [(os, name, self._link) for name in ("symlink", "link")]
        looking = [(os, name, self._look) for name in ("stat", "lstat", "readlink")]
        listing = [(os, "listdir", self._listdir), (os, "scandir", self._scandir)]
        # With descriptors of folders, `shutil.rmtree` would go by names that say nothing of their folder.
        plain = (shutil, "_use_fd_functions", lambda original: False)
        changing = [*opening, *making, *removing, *moving, *linking, (torch, "save", self._save), plain]
        return [*changing, *looking, *listing, *self._native_patches()]

    def _native_patches(self) -> list[tuple[Any, str, Callable[[Any], Any]]]:
        """Of safetensors, where it is installed: its code in Rust opens the files that it is given the names of."""
        saving = [(torch.jit, "save", self._save)]
        if importlib.util.find_spec("safetensors") is None:
            return saving
        safetensors = importlib.import_module("safetensors")
        reading = [(safetensors, name, self._reading) for name in ("safe_open", "_safe_open_handle")]
        writing = [(safetensors, "serialize_file", self._save)]
        return [*saving, *(patch for patch in (*reading, *writing) if hasattr(*patch[:2]))]

    def _reading(self, original: Callable) -> Callable:
        def read(path: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self._for_reading(path), *args, **kwargs)

        return read

    def _is_path(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and not isinstance(path, bytes)

    def _place(self, path: Any) -> str | None:
        """Where writes to `path` go; None where they may go where they say."""
        full = os.path.abspath(os.fspath(path))
        if full.startswith((self._scratch + os.sep, *_DEVICES)) or full == os.devnull:
            return None
        if any(full == folder or full.startswith(folder + os.sep) for folder in self._writable):
            return None
        return self._files + full

    def _for_reading(self, path: Any) -> Any:
        place = self._place(path) if self._is_path(path) else None
        if place is None:
            return path
        if os.path.abspath(os.fspath(path)) in self._gone:
            return place
        return place if _there(place) else path

    def _for_writing(self, path: Any, *, keep: bool) -> Any:
        place = self._place(path) if self._is_path(path) else None
        if place is None:
            return path
        full = os.path.abspath(os.fspath(path))
        if os.path.isdir(os.path.dirname(full)):
            _makedirs(os.path.dirname(place))
        if keep and not _there(place) and os.path.isfile(full) and full not in self._gone:
            shutil.copyfile(full, place)
        self._gone.discard(full)
        return place

    def _open(self, original: Callable) -> Callable:
        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                return original(self._for_writing(file, keep="w" not in mode), mode, *args, **kwargs)
            return original(self._for_reading(file), mode, *args, **kwargs)

        return open_

    def _os_open(self, original: Callable) -> Callable:
        def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & _WRITING:
                return original(self._for_writing(path, keep=not flags & os.O_TRUNC), flags, *args, **kwargs)
            return original(self._for_reading(path), flags, *args, **kwargs)

        return open_

    def _into(self, original: Callable) -> Callable:
        def act(path: Any, *args: Any, **kwargs: Any) -> Any:
            if original is _REAL_MKDIR and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            return original(self._for_writing(path, keep=True), *args, **kwargs)

        return act

    def _remove(self, original: Callable) -> Callable:
        def remove(path: Any, *args: Any, **kwargs: Any) -> None:
            place = self._place(path) if self._is_path(path) else None
            if place is None:
                return original(path, *args, **kwargs)
            full = os.path.abspath(os.fspath(path))
            if not os.path.lexists(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            if original is _REAL_RMDIR and os.listdir(path):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
            self._gone.add(full)
            return original(place, *args, **kwargs) if _there(place) else None

        return remove

    def _move(self, original: Callable) -> Callable:
        def move(source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            if self._place(source) is None and self._place(target) is None:
                return original(source, target, *args, **kwargs)
            held = self._for_writing(source, keep=True)
            result = original(held, self._for_writing(target, keep=False), *args, **kwargs)
            self._gone.add(os.path.abspath(os.fspath(source)))
            return result

        return move

    def _link(self, original: Callable) -> Callable:
        def link(source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source), None, str(target))
            source = source if original is _REAL_SYMLINK else self._for_reading(source)
            place = self._for_writing(target, keep=False)
            if original is _REAL_SYMLINK and place != target:
                # Seen from where the link now lies, its target is where this process would find it.
                source = self._for_reading(os.path.join(os.path.dirname(os.path.abspath(target)), source))
            return original(source, place, *args, **kwargs)

        return link

    def _look(self, original: Callable) -> Callable:
        def look(path: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self._for_stat(path), *args, **kwargs)

        return look

    def _for_stat(self, path: Any) -> Any:
        if not self._is_path(path):
            return path
        place = self._place(path)
        full = os.path.abspath(os.fspath(path))
        if place is None or (not _there(place) and not self._is_gone(full)):
            return path
        return path if os.path.isdir(place) and _there(full) else place

    def _is_gone(self, full: str) -> bool:
        return full in self._gone

    def _layers(self, path: Any) -> list[tuple[Any, set[str]]]:
        """The folders that together are the one at `path`, each with the names in it that are not to be seen."""
        place = self._place(path) if self._is_path(path) else None
        if place is None:
            return [(path, set())]
        full = os.path.abspath(os.fspath(path))
        own = set(_REAL_LISTDIR(place)) if os.path.isdir(place) else set()
        gone = {os.path.basename(g) for g in self._gone if os.path.dirname(g) == full}
        layers: list[tuple[Any, set[str]]] = [] if self._is_gone(full) or not _there(full) else [(path, own | gone)]
        return [*layers, *([(place, set())] if os.path.isdir(place) or not layers else [])]

    def _listdir(self, original: Callable) -> Callable:
        def listdir(path: Any = ".") -> list[Any]:
            return [name for folder, hidden in self._layers(path) for name in original(folder) if name not in hidden]

        return listdir

    def _scandir(self, original: Callable) -> Callable:
        def scandir(path: Any = ".") -> Any:
            layers = self._layers(path)
            return original(path) if layers == [(path, set())] else _Listing(original, path, layers)

        return scandir

    def _save(self, original: Callable) -> Callable:
        def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            return original(obj, self._for_writing(f, keep=False) if self._is_path(f) else f, *args, **kwargs)

        return save


class _Entry:
    """An entry of a folder under the name that the program knows it by."""

    def __init__(self, entry: os.DirEntry, folder: Any) -> None:
        self._entry = entry
        self.name = entry.name
        self.path = os.path.join(os.fspath(folder), entry.name)

    def __fspath__(self) -> str:
        return self.path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)


class _Listing:
    """What `os.scandir` gives, over several folders that are one to the program."""

    def __init__(self, scan: Callable, path: Any, layers: list[tuple[Any, set[str]]]) -> None:
        found = []
        for folder, hidden in layers:
            with scan(folder) as entries:
                found += [_Entry(entry, path) for entry in entries if entry.name not in hidden]
        self._entries = iter(found)

    def __iter__(self) -> Iterator[_Entry]:
        return self._entries

    def __next__(self) -> _Entry:
        return next(self._entries)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        """Nothing is open."""


_REAL_MKDIR, _REAL_RMDIR, _REAL_SYMLINK = os.mkdir, os.rmdir, os.symlink
_REAL_LSTAT, _REAL_LISTDIR = os.lstat, os.listdir


def _there(path: str) -> bool:
    """Whether anything lies at `path`, whatever the program is shown there."""
    try:
        _REAL_LSTAT(path)
    except (OSError, ValueError):
        return False
    return True


def _makedirs(folder: str) -> None:
    if not os.path.isdir(folder):
        _makedirs(os.path.dirname(folder))
        _REAL_MKDIR(folder)


def held_back(scratch: Path) -> list[str]:
    """Return the files that a replayed program wrote into `scratch` instead of their places, by those places."""
    root = scratch.resolve() / "files"
    return sorted("/" + str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
