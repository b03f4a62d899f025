"""A replayed script must not overwrite what the original run wrote: its writes go to a scratch folder, trackers are put offline.

What is written is kept under the scratch folder by its full path, and read from there again. Deleting and renaming act there, too.
Folders are listed with both. What was there in the first place is what the recorded run saw (`replay.file_view`). Writes by
native code are not seen here, but for those of torch and of `replay.native_writers`: the rest `replay.fence` refuses.
Room: replay. May touch: `open`, some of `os`, torch, environment variables, in an engine's own process only.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from replay import native_writers
from replay.file_view import FileView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_OFFLINE = {
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "HF_HUB_OFFLINE": "1",
}
_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE")
_DEVICES = ("/dev/", "/proc/", "/sys/")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Sandbox:
    """Redirects the writes of this process to `scratch`."""

    def __init__(
        self, scratch: Path, writable: Sequence[str] = (), view: FileView | None = None, *, thread: int | None = None
    ) -> None:
        """`scratch` exists and is ours; so are the `writable` folders: a branch that is being recorded.

        `view`: how the files were that are not written here. `thread`: redirect what this thread does, in a process that others share.
        """
        self.view = view or FileView()
        self._thread = thread
        self._scratch = str(scratch.resolve())
        self._writable = tuple(os.path.abspath(folder) for folder in writable)
        self._files = os.path.join(self._scratch, "files")
        self._gone: set[str] = set()
        self._partial: set[str] = set()
        """What was written on to without its beginning being known."""
        self._held: set[str] = set()

    def rewind(self, position: int) -> None:
        """From now on the files are as they were when the log had `position` events; what was written here of them is forgotten."""
        self.view.rewind(position)
        self._partial.clear()
        for path in self._held:
            self.view.doubt(path, "it is open in native code and could not be put back")
        for path in set(self.view.paths) - self._held:
            place = self._place(path)
            self._gone.discard(path)
            if place is not None and _there(place):
                _discard(place, tree=self.view.absent(path))
        self._stand_in()

    def _stand_in(self) -> None:
        """What was there then and is on the disk no more: a folder, or a file whose bytes the view knows or doubts."""
        for folder in (True, False):
            for path in self.view.lost(folder):
                place = self._place(path)
                if place is not None and not _there(place):
                    _makedirs(place if folder else os.path.dirname(place))
                    self._partial.add(path)
                    if not folder:
                        _REAL_OPEN(place, "wb").close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Redirect while the block runs."""
        os.makedirs(self._files, exist_ok=True)
        before = {name: os.environ.get(name) for name in (*_OFFLINE, *_MLFLOW)}
        if self._thread is None:
            (Path(self._scratch) / "tmp").mkdir(exist_ok=True)
            tempfile.tempdir = os.environ["TMPDIR"] = os.path.join(self._scratch, "tmp")
        os.environ.update(_OFFLINE)
        if _is_remote(os.environ.get("MLFLOW_TRACKING_URI", "")):
            os.environ.update(zip(_MLFLOW, (f"file://{self._scratch}/mlflow", "true"), strict=True))
        self._stand_in()
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave, before)
            for owner, name, make in self._patches():
                original = getattr(owner, name)
                setattr(owner, name, make(original))
                stack.callback(setattr, owner, name, original)
            stack.enter_context(native_writers.redirected(self))
            yield

    def _leave(self, before: dict[str, str | None]) -> None:
        """A process of its own ends soon; in one that others share the variables are again as they were."""
        if self._thread is None:
            tempfile.tempdir = None
            return
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def _patches(self) -> list[tuple[Any, str, Callable[[Any], Any]]]:
        opening = [(builtins, "open", self._open), (io, "open", self._open), (os, "open", self._os_open)]
        making = [(os, name, self._into) for name in ("mkdir", "chmod", "utime", "truncate")]
        removing = [(os, name, self._remove) for name in ("remove", "unlink", "rmdir")]
        moving = [(os, name, self._move) for name in ("rename", "replace")]
        linking = [(os, name, self._link) for name in ("symlink", "link")]
        looking = [(os, name, self._look) for name in ("stat", "lstat", "readlink", "access", "chdir")]
        listing = [(os, "listdir", self._listdir), (os, "scandir", self._scandir)]
        # With descriptors of folders, `shutil.rmtree` would go by names that say nothing of their folder.
        plain = (shutil, "_use_fd_functions", lambda original: False)
        whole = [(torch, "save", self._save), (torch, "load", self._reading)]
        changing = [*opening, *making, *removing, *moving, *linking, *whole, plain]
        native = [(torch.jit, "save", self._save), (torch.jit.RecursiveScriptModule, "save", self._save)]
        native += [(torch._C, "PyTorchFileReader", self._reading), (torch._C, "PyTorchFileWriter", self._writing)]
        return [*changing, *looking, *listing, *native]

    def _reading(self, original: Callable) -> Callable:
        def read(path: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self.for_reading(path), *args, **kwargs)

        return read

    def _writing(self, original: Callable) -> Callable:
        def write(path: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self.for_writing(path, keep=False), *args, **kwargs)

        return write

    def _is_path(self, path: Any) -> bool:
        return isinstance(path, (str, bytes, os.PathLike))

    def _place(self, path: Any) -> str | None:
        """Where writes to `path` go; None where they may go where they say."""
        full = _full(path)
        if self._thread is not None and threading.get_ident() != self._thread:
            return None
        if full.startswith((self._scratch + os.sep, *_DEVICES)) or full == os.devnull:
            return None
        if any(full == folder or full.startswith(folder + os.sep) for folder in self._writable):
            return None
        return self._files + full

    def for_reading(self, path: Any) -> Any:
        """Where what the program reads at `path` lies."""
        place = self._place(path) if self._is_path(path) else None
        if place is None:
            return path
        full = _full(path)
        if _there(place) and full not in self._partial:
            return place
        return self._there_then(full) or (place if _there(place) or self._is_gone(full) else path)

    def _there_then(self, full: str) -> str | None:
        written = full in self._partial
        return None if self._is_gone(full) else self.view.reading(full, written=written)

    def for_writing(self, path: Any, *, keep: bool, held: bool = False) -> Any:
        """Where what the program writes to `path` goes; `keep`: with what is in it; `held`: native code goes on with it."""
        place = self._place(path) if self._is_path(path) else None
        if place is None:
            return path
        full = _full(path)
        if os.path.isdir(os.path.dirname(full)):
            _makedirs(os.path.dirname(place))
        if keep and not _there(place) and os.path.isfile(full):
            before = self.view.reading(full, looks=True)
            if before is None and not self.view.is_as_then(full):
                self._partial.add(full)
            else:
                shutil.copyfile(before or full, place)
        elif not keep:
            self._partial.discard(full)
        self._gone.discard(full)
        if held:
            self._held.add(full)
        return place

    def _open(self, original: Callable) -> Callable:
        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                return original(self.for_writing(file, keep="w" not in mode), mode, *args, **kwargs)
            return original(self.for_reading(file), mode, *args, **kwargs)

        return open_

    def _os_open(self, original: Callable) -> Callable:
        def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & _WRITING:
                return original(self.for_writing(path, keep=not flags & os.O_TRUNC), flags, *args, **kwargs)
            return original(self.for_reading(path), flags, *args, **kwargs)

        return open_

    def _into(self, original: Callable) -> Callable:
        def act(path: Any, *args: Any, **kwargs: Any) -> Any:
            if original is _REAL_MKDIR and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            if original is not _REAL_MKDIR and self._is_path(path) and os.path.isdir(path):
                return None  # of a folder only what is in it matters
            return original(self.for_writing(path, keep=True), *args, **kwargs)

        return act

    def _remove(self, original: Callable) -> Callable:
        def remove(path: Any, *args: Any, **kwargs: Any) -> None:
            place = self._place(path) if self._is_path(path) else None
            if place is None:
                return original(path, *args, **kwargs)
            full = _full(path)
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
            held = self.for_writing(source, keep=True)
            result = original(held, self.for_writing(target, keep=False), *args, **kwargs)
            self._gone.add(_full(source))
            return result

        return move

    def _link(self, original: Callable) -> Callable:
        def link(source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source), None, str(target))
            source = source if original is _REAL_SYMLINK else self.for_reading(source)
            place = self.for_writing(target, keep=False)
            if original is _REAL_SYMLINK and place != target:
                # Seen from where the link now lies, its target is where this process would find it.
                source = self.for_reading(os.path.join(os.path.dirname(_full(target)), os.fsdecode(source)))
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
        full = _full(path)
        if place is None:
            return path
        gone = self._is_gone(full)
        if not gone and (not _there(place) or full in self._partial):
            return self.view.reading(full, looks=True) or (place if full in self._partial else path)
        return path if os.path.isdir(place) and _there(full) and not gone else place

    def _is_gone(self, full: str) -> bool:
        return full in self._gone or self.view.absent(full)

    def _layers(self, path: Any) -> list[tuple[Any, set[str]]]:
        """The folders that together are the one at `path`, each with the names in it that are not to be seen."""
        place = self._place(path) if self._is_path(path) else None
        if place is None:
            return [(path, set())]
        full = _full(path)
        own = set(_REAL_LISTDIR(place)) if os.path.isdir(place) else set()
        gone = {os.path.basename(g) for g in self._gone if os.path.dirname(g) == full} | self.view.missing_in(full)
        layers: list[tuple[Any, set[str]]] = [] if self._is_gone(full) or not _there(full) else [(path, own | gone)]
        return [*layers, *([(place, set())] if os.path.isdir(place) or not layers else [])]

    def _listdir(self, original: Callable) -> Callable:
        def listdir(path: Any = ".") -> list[Any]:
            if isinstance(path, bytes):
                return [os.fsencode(name) for name in listdir(os.fsdecode(path))]
            return [name for folder, hidden in self._layers(path) for name in original(folder) if name not in hidden]

        return listdir

    def _scandir(self, original: Callable) -> Callable:
        def scandir(path: Any = ".") -> Any:
            layers = self._layers(path)
            return original(path) if layers == [(path, set())] else _Listing(original, path, layers)

        return scandir

    def _save(self, original: Callable) -> Callable:
        def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            return original(obj, self.for_writing(f, keep=False) if self._is_path(f) else f, *args, **kwargs)

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
_REAL_LSTAT, _REAL_LISTDIR, _REAL_OPEN, _REAL_REMOVE = os.lstat, os.listdir, builtins.open, os.remove


def _is_remote(store: str) -> bool:
    """Whether mlflow would write to a server: what it writes to files, as it does unasked, goes to the scratch folder anyway."""
    scheme, named, _ = store.partition("://")
    return (bool(named) and scheme not in ("file", "sqlite")) or store.startswith("databricks")


def _full(path: Any) -> str:
    return os.path.abspath(os.fsdecode(path))


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


def _discard(place: str, *, tree: bool) -> None:
    """Remove what lies in the scratch folder; of a folder only where the whole `tree` is not to be seen."""
    if not os.path.isdir(place) or os.path.islink(place):
        _REAL_REMOVE(place)
    elif tree:
        shutil.rmtree(place)


def held_back(scratch: Path) -> list[str]:
    """Return the files that a replayed program wrote into `scratch` instead of their places, by those places."""
    root = scratch.resolve() / "files"
    return sorted("/" + str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
