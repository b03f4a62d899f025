"""What the program does with files while it is recorded: which it makes, changes and removes, and what it reads of those again.

A replay runs the program anew, when all its files are there as the run left them; from this it knows how they were. Told by
Python's audit events, so nothing of the program is wrapped but `torch.save`, whose writing is native. On the disk:
files/<session>.jsonl, an event a line with its sum, appended at once (a torn last line is none), and files/<sha256> with what
was in a file that the run read after it had changed it, or that it changed after it had read it.

An event is [what, path, was, content, other]. `what`: "w" is opened for writing, "r" read, "d" removed, "k" made as a folder, "m"
moved to `other`, "s" read though never changed, "i" read from standard input (kept in files/<session>.stdin). `was`: whether it
(of a move, the other) was there before. `content`: the name of its bytes at that time, if they were kept; of "s" its size and
time instead, of "i" its size and sum.
Room: tracer. May touch: the folder it is given; one audit hook for the life of the process, which does nothing when nothing records.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from tracer.compiled import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LARGEST = 256 << 20
"""So many bytes of one file are kept at most; of all together four times as many."""
MOST_EVENTS = 100_000
_MOST_READ = 10_000
_BY_SHA256 = 64
"""So long are the names of contents that nobody can make others for; older traces have those of 32."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEITHER = ("/dev/", "/proc/", "/sys/")
_CODE = (".py", ".pyc", ".so", ".pth")
_LIBRARIES = f"{os.sep}site-packages{os.sep}"
_OURS = f"{os.sep}.local{os.sep}state{os.sep}rewind{os.sep}"

Event = list[Any]


class FileLog:
    """Writes one session's log. `position` is the number of its events: a keyframe notes it."""

    def __init__(self, trace: Path, session: int) -> None:
        """Nothing is written before there is something to say."""
        self._folder = os.path.join(trace, "files")
        self._own = str(trace)
        self._compiler = cache_folder() + os.sep
        self._log, self._typed = str(log_file(trace, session)), str(stdin_file(trace, session))
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._inside = threading.local()
        self._file: Any = None
        self._changed: set[str] = set()
        self._read: set[str] = set()
        self._kept = self._heard = 0
        self._over = False
        self.position = 0

    def tell(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit event. Nothing that goes wrong here reaches the program."""
        if os.getpid() != self._pid or getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            with self._lock, contextlib.suppress(Exception):
                _ACTIONS[event](self, *args)
        finally:
            self._inside.now = False

    # -- what can happen -------------------------------------------------------------------------------------------------

    def opened(self, path: Any, mode: Any, flags: int) -> None:
        """A file is about to be opened."""
        full = self._full(path)
        if full is None:
            return
        if not flags & _WRITING:
            self._reading(full)
        else:
            self.writing(full, keeps=not flags & os.O_TRUNC, reads=bool(flags & os.O_RDWR))

    def _reading(self, full: str) -> None:
        if full in self._changed:
            if os.path.isfile(full):
                self._say("r", full, was=True, content=self._keep(full))
        elif full not in self._read and len(self._read) < _MOST_READ and not _is_code(full):
            facts = os.stat(full)
            self._read.add(full)
            self._say("s", full, was=True, content=[facts.st_size, facts.st_mtime_ns])

    def writing(self, full: str, *, keeps: bool, reads: bool = False) -> None:
        """A file is about to be written; `keeps`: what is in it stays, `reads`: it may be read, too."""
        was = os.path.lexists(full)
        first = full not in self._changed
        content = None
        if was and os.path.isfile(full) and (reads or (first and (keeps or full in self._read))):
            content = self._keep(full)
        self._changed.add(full)
        if reads and was and not first:
            self._say("r", full, was=True, content=content)
        self._say("w", full, was=was, content=content)

    def removed(self, path: Any, folder: Any = -1) -> None:
        """A file or folder is about to be removed."""
        full = self._full(path) if folder in (-1, None) else None
        if full is not None and os.path.lexists(full):
            self._say("d", full, was=True, content=self._before(full))
            self._changed.add(full)

    def moved(self, source: Any, target: Any, *folders: Any) -> None:
        """A file or folder is about to be renamed."""
        old, new = self._full(source), self._full(target)
        if old is None or new is None or any(f not in (-1, None) for f in folders) or not os.path.lexists(old):
            return
        self._say("m", old, was=os.path.lexists(new), content=self._before(new), other=new)
        self._changed.update((old, new))

    def linked(self, source: Any, target: Any, *folders: Any) -> None:
        """A link is about to be made."""
        full = self._full(target)
        if full is not None:
            self.writing(full, keeps=False)

    def made(self, path: Any, mode: Any = None, folder: Any = -1) -> None:
        """A folder is about to be made."""
        full = self._full(path) if folder in (-1, None) else None
        if full is not None and not os.path.lexists(full):
            self._changed.add(full)
            self._say("k", full, was=False)

    def native(self, path: Any, *rest: Any) -> None:
        """Native code is about to write a file and may read it: a database."""
        full = self._full(path)
        if full is not None and not full.endswith(":memory:"):
            self.writing(full, keeps=True, reads=full in self._changed)

    def typed(self, line: Any) -> None:
        """`input` has read a line from a terminal."""
        self.heard(f"{line}\n".encode("utf-8", "surrogateescape"))

    def heard(self, data: bytes) -> None:
        """Something was read from standard input."""
        if not data or self._over or os.getpid() != self._pid or self._heard + len(data) > LARGEST >> 2:
            return
        with self._lock, contextlib.suppress(OSError):
            self._heard += len(data)
            self._begin()
            with open(self._typed, "ab") as file:
                file.write(data)
            self._say("i", "", was=True, content=[len(data), xxhash.xxh3_64_hexdigest(data)])

    # -- keeping ---------------------------------------------------------------------------------------------------------

    def _full(self, path: Any) -> str | None:
        if isinstance(path, int) or path is None:
            return None
        full = os.path.abspath(os.fsdecode(path))
        own = full == self._own or full.startswith((self._own + os.sep, *_NEITHER))
        return None if own or _OURS in full or full.startswith(self._compiler) else full

    def _before(self, full: str) -> str | None:
        """What is lost where the run read it and did not make it itself."""
        if full in self._read and full not in self._changed and os.path.isfile(full):
            return self._keep(full)
        return None

    def _keep(self, full: str) -> str | None:
        """Copy a file as it is now; None where it is too large, or there is no room."""
        size = os.path.getsize(full)
        if size > LARGEST or self._kept + size > 4 * LARGEST:
            return None
        digest = _digest(full, hashlib.sha256)
        place = os.path.join(self._folder, digest)
        if not os.path.exists(place):
            os.makedirs(self._folder, exist_ok=True)
            if shutil.disk_usage(self._folder).free < 4 * size:
                return None
            self._kept += size
            temporary = f"{place}.{os.getpid()}"
            shutil.copyfile(full, temporary)
            os.replace(temporary, place)
        return digest

    def _say(self, what: str, path: str, *, was: bool, content: Any = None, other: str | None = None) -> None:
        if self.position >= MOST_EVENTS:
            return
        self.position += 1
        self._append([what, path, was, content, other])

    def _append(self, event: Event) -> None:
        self._begin()
        self._file.write(_line(event))

    def _begin(self) -> None:
        if self._file is None:
            os.makedirs(self._folder, exist_ok=True)
            self._file = open(self._log, "wb", buffering=0)  # noqa: SIM115  it stays open
            self._file.write(_line(["begin", time.time()]))
            with contextlib.suppress(OSError):
                os.remove(self._typed)

    def close(self) -> None:
        """The session ends: note how the files that it changed are now."""
        with self._lock, contextlib.suppress(OSError):
            self._over = True
            if self._file is None or os.getpid() != self._pid:
                return
            last = {path: [facts.st_size, facts.st_mtime_ns] for path in self._changed if (facts := _facts(path))}
            self._file.write(_line(["end", time.time(), last]))
            self._file.close()
            self._file = None


def _is_code(path: str) -> bool:
    return path.endswith(_CODE) or _LIBRARIES in path


def _facts(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _digest(path: str, kind: Callable[[], Any]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _line(event: Event) -> bytes:
    text = json.dumps(event).encode("utf-8", "surrogatepass")
    return text + b"\t" + xxhash.xxh3_64_hexdigest(text).encode() + b"\n"


_ACTIONS: dict[str, Callable[..., None]] = {
    "open": FileLog.opened,
    "os.remove": FileLog.removed,
    "os.rmdir": FileLog.removed,
    "shutil.rmtree": FileLog.removed,
    "os.rename": FileLog.moved,
    "os.mkdir": FileLog.made,
    "os.link": FileLog.linked,
    "os.symlink": FileLog.linked,
    "sqlite3.connect": FileLog.native,
    "builtins.input/result": FileLog.typed,
}


class _Hook:
    """An audit hook cannot be taken off: there is one, and it knows who is to be told."""

    log: FileLog | None = None
    on = False


def _heard(event: str, args: tuple[Any, ...], actions: Any = _ACTIONS, hook: type[_Hook] = _Hook) -> None:
    # Both are the function's own: when the interpreter ends, the module has nothing any more.
    if event in actions and hook.log is not None:
        hook.log.tell(event, args)


@contextlib.contextmanager
def watched(log: FileLog) -> Iterator[None]:
    """Tell `log` while the block runs."""
    if not _Hook.on:
        sys.addaudithook(_heard)
        _Hook.on = True
    with contextlib.ExitStack() as stack:
        for owner, name in ((torch, "save"), (torch.jit, "save")):
            original = getattr(owner, name)
            setattr(owner, name, _told(original))
            stack.callback(setattr, owner, name, original)
        _Hook.log = log
        stack.callback(log.close)
        stack.callback(setattr, _Hook, "log", None)
        yield


def _told(save: Callable[..., None]) -> Callable[..., None]:
    """`torch.save` opens a file by its name where Python does not see it."""

    @functools.wraps(save)
    def saving(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(f, (str, os.PathLike)) and _Hook.log is not None:
            _Hook.log.tell("open", (f, None, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        return save(obj, f, *args, **kwargs)

    return saving


def position() -> int | None:
    """How many events the log that is written now has, None where none is."""
    return None if _Hook.log is None else _Hook.log.position


# -- reading -----------------------------------------------------------------------------------------------------------------


CUT = "is cut short"


def events(trace: Path, session: int) -> tuple[float | None, list[Event], dict[str, list[int]] | None]:
    """Return a session's log: when it began, its events, and its files' sizes and times at its end (None: it has none)."""
    return told(trace, session)[:3]


def told(trace: Path, session: int) -> tuple[float | None, list[Event], dict[str, list[int]] | None, str | None]:
    """The same, and what is wrong with it: a line that is damaged, or torn (`CUT`), ends the log."""
    begun, found, last = None, [], None
    try:
        with open(log_file(trace, session), "rb") as file:
            for line in file:
                event = _proven(line)
                if event is None:
                    return begun, found, last, "is damaged" if line.endswith(b"\n") else CUT
                if event[0] == "begin":
                    begun = begun or event[1]
                elif event[0] == "end":
                    last = event[2]
                else:
                    found.append(event)
    except FileNotFoundError:
        return begun, found, last, None
    except OSError as error:
        return begun, found, last, f"cannot be read ({error.strerror})"
    return begun, found, last, None


def _proven(line: bytes) -> Event | None:
    """The event that a line of a log holds; None where it is not as it was written, to its end."""
    text, _, digest = line[:-1].rpartition(b"\t")
    if not line.endswith(b"\n") or xxhash.xxh3_64_hexdigest(text).encode() != digest:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads(text)
        if isinstance(event, list) and len(event) == {"begin": 2, "end": 3}.get(str(event[:1] and event[0]), 5):
            return event
    return None


def log_file(trace: Path, session: int) -> Path:
    """Where a session's log is."""
    return trace / "files" / f"{session:03d}.jsonl"


def stdin_file(trace: Path, session: int) -> Path:
    """Where what a session read from standard input is kept."""
    return trace / "files" / f"{session:03d}.stdin"


def content(trace: Path, name: Any) -> Path | None:
    """The kept bytes called `name`, None where there are none or they are not what they were."""
    if not isinstance(name, str) or not name.isalnum():
        return None
    place = trace / "files" / name
    kind = hashlib.sha256 if len(name) == _BY_SHA256 else xxhash.xxh3_128
    return place if place.is_file() and _digest(str(place), kind) == name else None
