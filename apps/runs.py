"""The runs that the app was started on: traces, and directories of traces, newest first.

Room: apps. May touch: opens traces, for reading.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.exports import Exports
from apps.family import relatives
from apps.lookout import Lookout
from apps.pulse import Pulse
from apps.recorded import Recorded
from apps.steering import Steering
from apps.twins import Twins
from tracer import manifest
from tracer.errors import NameUnknownError, NotATraceError, TraceError
from tracer.listing import ls
from tracer.process import standing
from tracer.trace import open_trace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apps.family import Relative


class Runs:
    """The runs by name. A run is opened when it is first asked for, and stays open."""

    def __init__(self, paths: Iterable[str | Path], *, redraw: float | None = None) -> None:
        """`paths` are traces, or directories with traces under them. Raise NotATraceError where there is none.

        `redraw`: how many seconds at least lie between two redraws of a live run on a page.
        """
        self.asked = [Path(path) for path in paths]
        self._paths = named(found for path in self.asked for found in traces_at(path))
        self._times = directory_times(self.asked)
        self._open: dict[str, Recorded] = {}
        self._pulses: dict[str, Pulse] = {}
        self._words: dict[str, tuple[Any, str]] = {}
        self._watchers: dict[Path, set[int]] = {}
        self._redraw = redraw
        self.proof = ""
        """By which a page knows its server again (`apps.address.proof`)."""
        self.exports = Exports()
        self.twins = Twins()
        """What the pages' threads read."""
        self.lookout = Lookout()
        """What stands out in them, for the pages."""
        self.steering = Steering()
        """What the JSON API holds: until it says otherwise, or this process ends."""
        self.hands = Steering()
        """What the pages hold: until they say otherwise, or the last of them is closed."""
        if not self._paths:
            raise NotATraceError(
                "there is no trace to show: `rewind record train.py` makes one, `rewind ls` finds them"
            )

    @property
    def names(self) -> list[str]:
        """The names of the runs, in the order in which they are listed."""
        return list(self._paths)

    def look(self) -> None:
        """Look whether a run was begun, or removed, in the directories that were asked for; open ones keep their names."""
        changed = directory_times(self.asked)
        if changed == self._times:
            return
        self._times = changed
        known = {path: name for name, path in self._paths.items() if name in self._open}
        fresh = named(found for path in self.asked if path.exists() for found in traces_at(path))
        self._paths = {known.get(path, name): path for name, path in fresh.items()} or self._paths

    def listed(self) -> list[tuple[str, str]]:
        """The runs with a few words on each: when it was recorded, how long it is, how it ended."""
        for name, path in self._paths.items():
            now = stamp(path)
            if now != self._words.get(name, (None, ""))[0]:
                self._words[name] = (now, words(path))
        return [(name, self._words[name][1]) for name in self._paths]

    def open(self, name: str) -> Recorded:
        """The run of that name. Raise NameUnknownError, and what opening a trace raises."""
        if name not in self._paths:
            raise NameUnknownError(f"no run {name!r}; there are: {', '.join(self._paths)}")
        if name not in self._open:
            self._open[name] = Recorded(open_trace(self._paths[name]), name)
        return self._open[name]

    def relatives(self, name: str) -> list[Relative]:
        """The parent and the branches of a run, among the runs."""
        return relatives(name, self._paths)

    def pulse(self, run: Recorded) -> Pulse:
        """The standing of a run that `open` gave, one for all its pages."""
        if run.name not in self._pulses:
            self._pulses[run.name] = Pulse(run, redraw=self._redraw)
        return self._pulses[run.name]

    def enter(self, run: Recorded, page: int) -> None:
        """A page shows the run."""
        self._watchers.setdefault(run.trace.path, set()).add(page)

    def leave(self, page: int) -> list[Path]:
        """A page is closed: return the traces that no page shows any more."""
        left = [path for path, pages in self._watchers.items() if pages == {page}]
        for pages in self._watchers.values():
            pages.discard(page)
        return left

    def let_go(self, paths: list[Path]) -> None:
        """Hold nothing of what was read of these traces, which no page shows any more; they stay open."""
        for run in list(self._open.values()):
            if run.trace.path in paths:
                run.trace.let_go()

    def close(self) -> None:
        """Close all; live runs that only this app holds go on."""
        self.steering.close()
        self.hands.close()
        self.lookout.close()
        self.twins.close()
        for run in self._open.values():
            run.trace.close()
        self._open.clear()


def traces_at(path: Path) -> list[Path]:
    """The trace at `path`, or the traces under it, newest first; broken ones last."""
    if (path / "trace.json").exists():
        return [path]
    if not path.is_dir():
        raise NotATraceError(f"{path} is no trace and no directory", path=path)
    found = ls(path)
    return [Path(f["path"]) for f in sorted(found, key=lambda f: f["error"] is not None)]


def directory_times(paths: Iterable[Path]) -> list[int]:
    """When something was last put into, or taken out of, each directory that is no trace itself."""
    return [p.stat().st_mtime_ns for p in paths if p.is_dir() and not (p / "trace.json").exists()]


def stamp(path: Path) -> tuple[Any, ...]:
    """What changes when the words on a trace may have: its facts, its progress, whether its process lives."""
    try:
        times = [os.stat(path / name).st_mtime_ns for name in ("trace.json", "status.json") if (path / name).exists()]
        session = manifest.read(path).sessions[-1:]
    except (OSError, TraceError):
        return (None,)
    return (*times, *map(standing, session))


def words(path: Path) -> str:
    """What a list says of a trace; why it cannot be read, where it cannot."""
    facts = next(iter(ls(path)), None)
    if facts is None or facts["error"]:
        return "broken"
    when = datetime.fromtimestamp(facts["created"]).strftime("%Y-%m-%d %H:%M")
    return f"{when}, {facts['steps']} steps, {facts['status']}"


def named(paths: Iterable[Path]) -> dict[str, Path]:
    """Paths by the shortest ends that tell them apart."""
    whole = list(dict.fromkeys(p.resolve() for p in paths))
    names: dict[str, Path] = {}
    for path in whole:
        depth = 1
        while depth < len(path.parts) and any(p != path and p.parts[-depth:] == path.parts[-depth:] for p in whole):
            depth += 1
        names[os.sep.join(path.parts[-depth:])] = path
    return names
