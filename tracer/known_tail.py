"""All that is known of one tail file, kept once in a process however often and by however many it is opened.

Who looks again takes in only what was written since, and each sees it as it was when he looked. The headers of records
are taken apart when they are asked for.
Room: tracer. May touch: reads the tail it is given.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer.errors import DamageError, NotATraceError
from tracer.packing import PackedLayout
from tracer.ranges import GrowingRanges, Ranges
from tracer.tail import Record, TailReader

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("rewind")
_MOST = 32
"""So many tails are remembered; a run that is sealed as fast as it writes has one or two."""


_LISTED = ("begin", "keyframe", "state", "step", "close")
"""The records that are asked for by their steps, or say how far the session is."""


@dataclass(frozen=True)
class View:
    """A tail as it was at one moment: its first `count` records."""

    count: int
    steps: Ranges
    states: Ranges
    grad_steps: Ranges
    keyframes: tuple[int, ...]
    closed: bool
    torn_bytes: int
    damage: DamageError | NotATraceError | None


NOTHING = View(0, Ranges(), Ranges(), Ranges(), (), False, 0, None)
"""A tail that nobody has looked at yet."""


class KnownTail:
    """All that is known of one tail file. It only grows; what is listed by step is looked up by those who know of the step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begin: dict[str, Any] = {}
        self.records: list[Record] = []
        self.step_records: dict[int, Record] = {}
        self.state_records: dict[int, Record] = {}
        self.grad_records: dict[int, Record] = {}
        self.print_records: dict[int, Record] = {}
        self.frames: dict[int, Record] = {}
        self.close_record: Record | None = None
        self.forms = Forms()
        self._reader = TailReader(path)
        self._lock = threading.Lock()
        self._steps, self._states, self._grads = GrowingRanges(), GrowingRanges(), GrowingRanges()
        self._damage: DamageError | NotATraceError | None = None
        self._stamp: tuple[int, int] | None = None
        self._view = self._seen()

    @property
    def identity(self) -> tuple[str, int, int]:
        """Its path, device and inode: these stay its own for as long as it is held open."""
        facts = self._reader.stat()
        return str(self.path), facts.st_dev, facts.st_ino

    @property
    def is_removed(self) -> bool:
        """Whether the file has no name any more."""
        return not self._reader.stat().st_nlink

    def fits(self, facts: os.stat_result) -> bool:
        """Whether the file has only grown, if anything, since it was looked at: what was cut or rewritten is read anew."""
        size, changed = self._stamp or (0, 0)
        return facts.st_size > size or (facts.st_size, facts.st_mtime_ns) == (size, changed)

    def look(self) -> View:
        """Take in what became whole since; damage is kept, not raised."""
        with self._lock:
            facts = self._reader.stat()
            stamp = (facts.st_size, facts.st_mtime_ns)
            if stamp != self._stamp and self._damage is None:
                try:
                    for record in self._reader.new_records():
                        self._take(record)
                        self.records.append(record)
                except (DamageError, NotATraceError) as error:
                    self._damage = error
                    _log.warning("%s; what follows there cannot be read", error)
                self._view = self._seen()
            self._stamp = stamp
            return self._view

    def _seen(self) -> View:
        return View(
            len(self.records),
            self._steps.now(),
            self._states.now(),
            self._grads.now(),
            tuple(self.frames),
            self.close_record is not None,
            self._reader.torn_bytes,
            self._damage,
        )

    def _take(self, record: Record) -> None:
        if record.kind in _LISTED:
            getattr(self, f"_take_{record.kind}")(record)

    def _take_begin(self, record: Record) -> None:
        self.begin = record.header

    def _take_keyframe(self, record: Record) -> None:
        self.frames[_step_of(record)] = record

    def _take_state(self, record: Record) -> None:
        self._take_weights(record, _step_of(record))
        self.print_records[_step_of(record)] = record

    def _take_weights(self, record: Record, state: int) -> None:
        self.state_records[state] = record
        self._states.add(state)

    def _take_step(self, record: Record) -> None:
        step = _step_of(record)
        self.step_records[step] = record
        self._steps.add(step)
        self.print_records[step + 1] = record
        if "weights" in record.names:
            self._take_weights(record, step + 1)
        if "grads" in record.names:
            self.grad_records[step] = record
            self._grads.add(step)

    def _take_close(self, record: Record) -> None:
        self.close_record = record

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def _step_of(record: Record) -> int:
    if record.step is None:
        raise DamageError(f"{record.path}: a {record.kind} record says no step", path=record.path)
    return record.step


class Forms:
    """What the headers of a tail say besides: layouts, samples, blobs, captures. Read when first asked for."""

    def __init__(self) -> None:
        self.layouts: dict[int, PackedLayout] = {}
        self.samples: dict[str, list[Record]] = {}
        self.blobs: dict[str, Record] = {}
        self.captures: dict[str, dict[tuple, GrowingRanges]] = {}
        self._taken = 0
        self._lock = threading.Lock()

    def upto(self, records: list[Record], count: int) -> Forms:
        """What the first `count` of `records`, and maybe more of them, say. Raise DamageError."""
        with self._lock:
            while self._taken < count:
                self._take(records[self._taken])
                self._taken += 1
        return self

    def _take(self, record: Record) -> None:
        try:
            self._note(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamageError(
                f"{record.path}: a {record.kind} record is damaged: {error!r}", path=record.path
            ) from None

    def _note(self, record: Record) -> None:
        if record.kind == "layout":
            self.layouts[record.header["layout"]] = PackedLayout.of(record.header)
        elif record.kind == "samples":
            self.samples.setdefault(record.header["pool"], []).append(record)
        elif record.kind == "blob":
            self.blobs[record.header["blob"]] = record
        elif record.kind == "step" and any(name.startswith("capture") for name in record.names):
            for capture in record.header["captures"]:
                dims = tuple(capture["dims"]) if capture.get("dims") is not None else None
                form = (capture["dtype"], tuple(capture["shape"]), dims)
                self.captures.setdefault(capture["key"], {}).setdefault(form, GrowingRanges()).add(_step_of(record))


class _Known:
    """The tails that were opened last, by identity."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget all: in a forked child, whose parent may just have held the lock."""
        self._lock = threading.Lock()
        self._tails: OrderedDict[tuple[str, int, int], KnownTail] = OrderedDict()

    def at(self, path: Path) -> KnownTail:
        """Return what is known of the tail at `path`. Raise FileNotFoundError."""
        facts = os.stat(path)
        key = (str(path), facts.st_dev, facts.st_ino)
        with self._lock:
            found = self._tails.get(key)
            if found is not None and found.fits(facts):
                self._tails.move_to_end(key)
                return found
        made = KnownTail(path)
        self.forget_removed()
        with self._lock:
            self._tails[made.identity] = made
            while len(self._tails) > _MOST:
                self._tails.popitem(last=False)
        return made

    def forget_removed(self) -> None:
        """Let go of files that have been removed: they were sealed, and take up the disk while they are held open."""
        with self._lock:
            for key in [key for key, tail in self._tails.items() if tail.is_removed]:
                del self._tails[key]


_known = _Known()
at, forget_removed = _known.at, _known.forget_removed
os.register_at_fork(after_in_child=_known.renew)
