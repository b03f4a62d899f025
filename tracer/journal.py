"""The recorder's pen: appends records to the session's tail files, rolls them, keeps count of what the disk refused.

One writer a session, in the training thread: a record is in the page cache before the step goes on, so a killed process loses
nothing that was passed. A large keyframe alone is written while the next step computes; the next record waits for it, so that
two never write at once. A separate low-priority process (`tracer.sealing`) turns rolled files into segments.
Room: tracer. May touch: tail/ of its trace.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracer.lost import worded
from tracer.tail import Buffer, NoTail, TailWriter, sync

if TYPE_CHECKING:
    from pathlib import Path

    from tracer.errands import Errands

Sections = Sequence[tuple[str, Sequence[Buffer], str | None]]
Later = tuple[dict[str, Any], Callable[[], Sections], Callable[[bool, float], None]]
"""A record that can wait: its header, what makes its sections, who is told whether it was written and in how many seconds."""
ROLL_STEPS = 2048
ROLL_BYTES = 64 << 20
SYNC_SECONDS = 5.0
_RESERVE_BYTES = 1 << 30
_LOOK_BYTES = 16 << 20
_RETRY_SECONDS = 1.0
_OWED = frozenset({"layout", "state", "samples", "epoch", "event"})
"""Records that later ones need, or that count: they are kept while the disk refuses, and written first when it takes."""
_MOST_OWED = 64 << 20
_log = logging.getLogger("rewind")


def reserve(total: int) -> int:
    """How much of a disk of `total` bytes is the program's own: a recording must not be why a checkpoint fails."""
    return min(_RESERVE_BYTES, total // 20)


class Journal:
    """Writes the records of one session."""

    def __init__(
        self, path: Path, session: int, first_row: int, first_step: int, errands: Errands | None = None
    ) -> None:
        self._path = path
        self._errands = errands
        self._session = session
        self._first_row = first_row
        self._sequence = 0
        self._steps = 0
        self._roll_steps = ROLL_STEPS
        self._layout: dict[str, Any] | None = None
        self._synced = time.monotonic()
        self._failed_at = 0.0
        self._first_step = self._next_step = first_step
        self.written = 0
        self._next_look = _LOOK_BYTES
        self.all_lost: list[list[int]] = []
        self._owed: list[tuple[dict[str, Any], list[tuple[str, list[Buffer], str | None]]]] = []
        self._owed_bytes = 0
        self._lost: list[list[int]] = []
        self.remade: Callable[[], None] = lambda: None
        self.failure: OSError | None = None
        self._unmade = False
        self._beside: threading.Thread | None = None
        self._closed = False
        try:
            self._tail: TailWriter | NoTail = self._begin(first_step)
        except OSError as error:
            self._tail = NoTail()
            self._sequence = -1
            self._fail(error)

    def _begin(self, step: int) -> TailWriter:
        tail = TailWriter(self._path / "tail" / f"{self._session:04d}-{self._sequence:06d}.log")
        begin = {
            "kind": "begin",
            "session": self._session,
            "seq": self._sequence,
            "first_step": step,
            "first_row": self._first_row,
            "time": time.time(),
        }
        try:
            tail.append(begin)
            if self._layout is not None:
                tail.append(self._layout)
        except OSError:
            tail.close()
            tail.path.unlink(missing_ok=True)  # Else its name would be taken when it is tried again.
            raise
        self._first_step = step
        return tail

    def layout(self, header: dict[str, Any], *, every_step: bool) -> None:
        """Write the layout of the states that follow; `every_step`: one with each step."""
        self._layout = header
        self.append(header)
        # A file holds about ROLL_BYTES, in a power of two of steps: the rows of one segment are then whole Zarr shards.
        steps = max(1, ROLL_BYTES // max(1, header["nbytes"])) if every_step else ROLL_STEPS
        self._roll_steps = min(ROLL_STEPS, 1 << (steps.bit_length() - 1))

    @property
    def room(self) -> int:
        """The bytes that are free on the disk; none where it cannot be asked."""
        try:
            return shutil.disk_usage(self._path).free
        except OSError:
            return 0

    def seldom(self) -> None:
        """The states that follow come no longer with each step: files get as long as without them."""
        self._roll_steps = ROLL_STEPS

    def append(self, header: dict[str, Any], sections: Sections = ()) -> bool:
        """Write one record; return whether the disk took it. After a refusal it is tried once a second, no oftener."""
        if self._beside is not None:
            self._settle()
        if self.failure is not None and time.monotonic() - self._failed_at < _RETRY_SECONDS:
            self._owe(header, sections)
            return False
        try:
            if self.failure is not None or self.written >= self._next_look:
                self._leave_reserve()
            if self.failure is not None:
                self._recover()
            self.written += self._tail.append(header, sections)
        except OSError as error:
            self._fail(error)
            self._owe(header, sections)
            return False
        return True

    def _leave_reserve(self) -> None:
        """Raise OSError where so little of the disk is left that it is the program's own."""
        try:
            disk = shutil.disk_usage(self._path)
        except OSError:
            return  # It is gone: writing says so.
        if disk.free < reserve(disk.total):
            raise OSError(errno.ENOSPC, f"only {disk.free >> 20} MB of the disk are left, for the program's own files")
        self._next_look = self.written + _LOOK_BYTES

    def _fail(self, error: OSError) -> None:
        self._failed_at = time.monotonic()
        if self.failure is None:
            _log.error("cannot write to %s: %s; training goes on, steps are being lost", self._path, error)
        self.failure = error

    def refused(self, error: OSError) -> None:
        """What the trace needs beside its tails was refused: `remade` tries it again before the next record."""
        self._unmade = True
        self._fail(error)

    def _owe(self, header: dict[str, Any], sections: Sections) -> None:
        if header["kind"] not in _OWED:
            return
        size = sum(len(b) for _, buffers, _ in sections for b in buffers)
        if self._owed_bytes + size > _MOST_OWED:
            _log.error("the disk refuses for too long: a record that later ones need (%s) is lost", header["kind"])
            return
        self._owed_bytes += size
        self._owed.append((header, [(name, [bytes(b) for b in buffers], check) for name, buffers, check in sections]))

    def _recover(self) -> None:
        """Try the disk again: first what is owed, then which steps were lost. Raise OSError where it still refuses."""
        if not self._tail_is_there():
            self._replace_tail()
            self._unmade = True
        if self._unmade:
            self.remade()
            self._unmade = False
        while self._owed:
            owed, sections = self._owed[0]
            self.written += self._tail.append(owed, sections)
            self._owed_bytes -= sum(len(b) for _, buffers, _ in sections for b in buffers)
            del self._owed[0]
        if self._lost:
            lost = worded(self._lost)
            detail = f"{lost}: {self.failure}"
            step = self._lost[-1][1]
            self._tail.append(
                {"kind": "event", "step": step, "event": "dropped", "detail": detail, "time": time.time()}
            )
            _log.warning("writing to %s works again; lost: steps %s", self._path, lost)
            self.all_lost += self._lost
            self._lost = []
        else:
            _log.warning("writing to %s works again; nothing was lost", self._path)
        self.failure = None

    def _tail_is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._tail.path), self._tail.stat())
        except OSError:
            return False

    def _replace_tail(self) -> None:
        """The file was removed under us, its directory maybe too: what was in it is lost, go on in a new one."""
        (self._path / "tail").mkdir(parents=True, exist_ok=True)
        self._sequence += 1
        old, first = self._tail, self._first_step
        try:
            self._tail = self._begin(self._next_step)
        except OSError:
            self._sequence -= 1
            raise
        old.close()
        self._lose(first, self._next_step - 1)

    def _lose(self, first: int, last: int) -> None:
        if self._lost and first <= self._lost[-1][1] + 1:
            self._lost[-1] = [min(first, self._lost[-1][0]), max(last, self._lost[-1][1])]
        elif first <= last:
            self._lost.append([first, last])

    def _begin_beside(self, later: Later) -> None:
        """Write a record in a thread, while the program goes on."""
        header, made, told = later

        def write() -> None:
            started = time.perf_counter()
            if not self._closed:
                written = self.append(header, made())
                told(written, time.perf_counter() - started)

        if self.failure is not None:
            write()
            return
        self._beside = threading.Thread(target=write, name="rewind-keyframe", daemon=True)
        self._beside.start()

    def _settle(self) -> None:
        """Wait for the record that is being written beside the program. (One that a signal's handler cut off never began.)"""
        beside = self._beside
        if beside is threading.current_thread():
            return
        if beside is not None and beside.ident is not None:
            beside.join()
        self._beside = None

    def step(self, header: dict[str, Any], sections: Sections, later: Later | None = None) -> bool:
        """Write a step record, then, while the program goes on, `later`; roll the file and sync it where that is due."""
        step = self._next_step = int(header["step"])
        written = self.append(header, sections)
        self._next_step = step + 1
        if not written:
            self._lose(step, step)
            return False
        self._steps += 1
        if later is not None:
            self._begin_beside(later)
        if self._steps % self._roll_steps == 0 or self._tail.size > 4 * ROLL_BYTES:
            self._roll(step + 1)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()
        return True

    def _roll(self, next_step: int) -> None:
        self._settle()
        old, self._sequence = self._tail, self._sequence + 1
        try:
            self._tail = self._begin(next_step)
        except OSError as error:
            self._sequence -= 1
            _log.error("cannot begin a new file in %s/tail: %s", self._path, error)
            return
        try:
            old.append({"kind": "roll"})
        except OSError as error:
            _log.error("cannot end %s: %s", old.path, error)
        old.close()

    def _sync(self) -> None:
        self._synced = time.monotonic()
        path = self._tail.path
        if self._errands is None:
            _sync(path)
        else:
            self._errands.run(f"sync {path.name}", lambda: _sync(path))
        if self.failure is None and not self._tail_is_there():
            self._fail(FileNotFoundError(f"{self._tail.path} was removed"))

    def close(self, status: str) -> None:
        """End the session's last file; what the disk refused until now is tried once more."""
        self._settle()
        self._failed_at = 0.0
        self.append({"kind": "close", "status": status, "time": time.time()})
        self._sync()
        self._closed = True
        self._tail.close()


def _sync(path: Path) -> None:
    """Ask the disk to keep what was written to `path`; if it is gone, it was sealed, or its removal is found elsewhere."""
    try:
        sync(path)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.error("cannot sync %s: %s", path, error)
