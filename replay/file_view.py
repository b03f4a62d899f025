"""The user's files as the recorded run saw them at one place of its log (`tracer.files`), not as it left them.

At the program's start a checkpoint that the run wrote later is not there; at a keyframe it is, with the bytes that the run
read of it. A file that native code made unseen while the run went on, told by its time of birth, is not there at the start.
What was not kept and is no longer on the disk is doubted, by name: a step that then diverges says so. What a run prepared
before its first step and then read (a download) is there from the start, and so are caches: to make them again proves nothing.
Room: replay. Reads the trace and asks the disk; changes nothing.
"""

from __future__ import annotations

import ctypes
import functools
import os
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from tracer import beside, files

if TYPE_CHECKING:
    from tracer.files import Event
    from tracer.trace import Trace

_CHANGING = "wdkm"
_SLACK = 0.05
_REAL_LSTAT, _REAL_STAT, _REAL_LISTDIR = os.lstat, os.stat, os.listdir


class FileView:
    """At `position` of a session's log; `sight`, which looks at the disk itself, is given by the sandbox that hides it."""

    def __init__(self, trace: Trace | None = None, session: int = 0) -> None:
        """Without a trace, or with one that has no log: everything is as it is on the disk."""
        begun, events, last, problem = _log(trace, session)
        self._trace, self._last = trace, last or {}
        self._own = None if trace is None else str(trace.path.resolve())
        self._complete = len(events) < files.MOST_EVENTS
        self._known: dict[str, list[tuple[int, Event]]] = {}
        self._heard: list[int] = []
        for number, event in enumerate(events):
            if event[0] == "i":
                self._heard.append(number)
                continue
            self._known.setdefault(event[1], []).append((number, event))
            if event[0] == "m":
                self._known.setdefault(event[4], []).append((number, event))
        self._meanwhile = _meanwhile(trace, session, begun) if begun is not None else None
        self._prepared = self._found_prepared(_first_position(trace, session)) if events else set()
        self.position = 0
        self.began = True
        self.doubts: list[str] = []
        self._cursor: dict[str, int] = {}
        self._proven: dict[str, str | None] = {}
        self._absent: set[str] = set()
        self.rewind(0, began=True)
        if trace is not None and problem is not None:
            self.doubt(
                str(files.log_file(trace.path, session)), f"{problem}, which files the run read is not all known"
            )

    @property
    def paths(self) -> list[str]:
        """What the run is known to have changed, and what it read."""
        return list(self._known)

    def rewind(self, position: int, *, began: bool = False) -> None:
        """Look from here on as the run did when its log had `position` events; `began`: where the program starts."""
        self.position, self.began = position, began
        self._cursor.clear()
        if self._heard and not began:
            self.doubt("standard input", "it could not be put back to where the run was in it")
        self._absent = {
            path for path in self._known if not self._there(path) and not (began and path in self._prepared)
        }

    def _found_prepared(self, first: int) -> set[str]:
        """What was made before the log's event `first` (a step's), is as it was then, and was read; with the folders it is in."""
        found = set()
        for path, events in self._known.items():
            changes = [number for number, event in events if event[0] in _CHANGING]
            read = any(event[0] == "r" for _, event in events)
            if changes and changes[-1] < first and (_is_cache(path) or (read and _facts(path) == self._last.get(path))):
                found |= {path, *_above(path)}
        return found

    def _there(self, path: str) -> bool:
        events = self._known[path]
        before = bisect_left(events, (self.position,), key=lambda found: (found[0],))
        for _, event in reversed(events[:before]):
            if event[0] in _CHANGING:
                return event[0] in "wk" or (event[0] == "m" and event[4] == path)
        for _, event in events[before:]:
            if event[0] == "m":
                return event[1] == path or bool(event[2])
            return bool(event[2])
        return True

    def absent(self, full: str) -> bool:
        """Whether nothing was at `full`."""
        if self._own is not None and (full == self._own or full.startswith(self._own + os.sep)):
            return False
        if full in self._absent:
            return True
        if self._absent and any(above in self._absent for above in _above(full)):
            return True
        return full not in self._known and self.began and self._born_meanwhile(full)

    def missing_in(self, folder: str) -> set[str]:
        """Which of the names that are in a folder now were not in it."""
        found = {os.path.basename(path) for path in self._absent if os.path.dirname(path) == folder}
        facts = _stat(folder)
        if self.began and self._meanwhile is not None and facts is not None and facts.st_mtime >= self._meanwhile[0]:
            found |= {name for name in _REAL_LISTDIR(folder) if self._born_meanwhile(os.path.join(folder, name))}
        return found

    def lost(self, folder: bool) -> list[str]:
        """The files (or folders) that were there and are not on the disk any more."""
        return [
            path
            for path in self._known
            if path not in self._absent and _stat(path) is None and self._is_folder(path) == folder
        ]

    def _is_folder(self, path: str) -> bool:
        return any(event[0] == "k" for _, event in self._known[path])

    def reading(self, full: str, *, looks: bool = False, written: bool = False) -> str | None:
        """Where the bytes lie that the run read here, where they are not what is on the disk; None where that is to be read.

        `looks`: nothing is read yet. `written`: the program has changed the file since, as the run had.
        """
        events = self._known.get(full)
        if events is None or self._trace is None:
            return None
        start = self._cursor.get(full, self.position)
        later = events[bisect_left(events, (start,), key=lambda found: (found[0],)) :]
        number, name = _next_content(full, later, past_changes=written)
        found = None if name is None else self._content(name)
        if found is None and not looks and (name is not None or not self.is_as_then(full)):
            why = "was not kept" if name is None else f"(files/{name} of the trace) is damaged or missing"
            self.doubt(full, f"it is read as it is now; what the run read {why}")
        elif found is not None and not looks:
            self._cursor[full] = number
        return found

    def _content(self, name: str) -> str | None:
        if name not in self._proven:
            found = files.content(self._trace.path, name) if self._trace is not None else None
            self._proven[name] = None if found is None else str(found)
        return self._proven[name]

    def is_as_then(self, full: str) -> bool:
        """Whether the disk still has what the run had here: it changed it no more, nor did anyone after it."""
        events, facts = self._known.get(full), _facts(full)
        if events is None:
            return True
        said = next((event[3] for _, event in events if event[0] == "s"), None)
        if all(event[0] == "s" for _, event in events):
            return _facts(full, follow=True) == said  # What is read through a link is what the link leads to.
        if not self._complete or any(number >= self.position and event[0] in _CHANGING for number, event in events):
            return False
        return facts is not None and facts == self._last.get(full)

    def doubt(self, full: str, why: str) -> None:
        """A step that diverges from here on may do so because of this file."""
        if f"{full}: {why}" not in self.doubts:
            self.doubts.append(f"{full}: {why}")

    def _born_meanwhile(self, full: str) -> bool:
        if self._meanwhile is None or _is_cache(full):
            return False
        begun, stepped, ended = self._meanwhile
        born, facts = _born(full), _stat(full)
        if born is None or facts is None or not begun <= born <= ended:
            return False
        return born >= stepped or facts.st_mtime >= stepped  # what was ready before the first step was prepared for it


def _log(trace: Trace | None, session: int) -> tuple[Any, list[Event], dict[str, list[int]] | None, str | None]:
    """The session's log and what is wrong with it; none where it is another than its maker's mark stands for."""
    if trace is None:
        return None, [], None, None
    facts = trace.manifest.session(session)
    if files.log_file(trace.path, session).name in beside.changed(trace.path, facts):
        return None, [], None, "is not what was written"
    return files.told(trace.path, session)


def _next_content(full: str, later: list[tuple[int, Event]], *, past_changes: bool) -> tuple[int, str | None]:
    """What the run found in the file next, before it changed it (or after it); and where its log goes on from there."""
    for number, (what, _, _, content, other) in later:
        of_this = what != "m" or other == full
        if what in "rwdm" and of_this and content is not None:
            return number + (what == "r"), content
        if what in _CHANGING and not past_changes:
            break
    return 0, None


def _is_cache(path: str) -> bool:
    return f"{os.sep}.cache{os.sep}" in path or "__pycache__" in path


def _meanwhile(trace: Trace | None, session: int, begun: float) -> tuple[float, float, float] | None:
    """When the session began, when its first step did, and when it ended."""
    if trace is None or session >= len(trace.manifest.sessions):
        return None
    facts = trace.manifest.sessions[session]
    ended = facts.ended or os.path.getmtime(files.log_file(trace.path, session))
    return begun - _SLACK, facts.started, ended + _SLACK


def _first_position(trace: Trace | None, session: int) -> int:
    """How many events the log had at the session's first keyframe."""
    if trace is None or session >= len(trace.manifest.sessions):
        return 0
    first = trace.manifest.sessions[session].first_step
    frame = next((k for k in trace.keyframes if k >= first), None)
    return (trace.keyframe(frame)[0].get("files") or 0) if frame is not None else 0


def _above(full: str) -> list[str]:
    found = []
    while (parent := os.path.dirname(full)) != full:
        found.append(parent)
        full = parent
    return found


def _stat(path: str, *, follow: bool = False) -> os.stat_result | None:
    try:
        return (_REAL_STAT if follow else _REAL_LSTAT)(path)
    except (OSError, ValueError):
        return None


def _facts(path: str, *, follow: bool = False) -> list[int] | None:
    found = _stat(path, follow=follow)
    return None if found is None else [found.st_size, found.st_mtime_ns]


_STATX_BTIME = 0x800
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100


@functools.cache
def _statx() -> Any:
    return getattr(ctypes.CDLL(None, use_errno=True), "statx", None)


def _born(path: str) -> float | None:
    """When the file at `path` was made; None where the system does not say."""
    call = _statx()
    buffer = (ctypes.c_uint32 * 64)()
    if call is None or call(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer):
        return None
    if not buffer[0] & _STATX_BTIME:
        return None
    # struct statx: mask, ..., then at byte 64 atime, at 80 btime: 64 bits of seconds, 32 of nanoseconds.
    return buffer[20] + (buffer[21] << 32) + buffer[22] / 1e9
