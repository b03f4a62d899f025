"""The sealer: turns the tails of a trace into segments; `python -m tracer.sealer TRACE --session S` beside a recording.

That process is started with the recording and loads no torch. It works at low priority, at more where it falls behind.
It seals each tail file that has been rolled, and does what can be done ahead for the one that grows; when its standard
input ends (the recording is over, or its process was killed) it seals what is left, notes in trace.json how the session
ended where nobody else did, builds index.duckdb, and ends.
Room: tracer. May touch: the trace it is given.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numcodecs import blosc

from tracer import index, manifest, segments, tables
from tracer.chain import Chain
from tracer.errors import RewindError, UsageError, WriteError
from tracer.open_segment import OpenSegment
from tracer.process import standing
from tracer.segment_writer import SegmentWriter
from tracer.store import write_group
from tracer.tail import MAGIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracer.manifest import SessionFacts
    from tracer.segments import Key

_POLL_SECONDS = 0.3
_UNNAMED = re.compile(r"\..+\.\d+")
_SILENT_SECONDS = 120.0
_INDEX_EVERY = 64
_NICE = (15, 10, 5, 0)
"""How much the sealer yields to others where 1, 2, 3 or more tails wait."""


def seal(path: str | Path, session: int | None = None) -> list[str]:
    """Seal all tails of the trace (or of one session), say how each session ended, build the index.

    Return what was found and done, a line each. What is sealed stays as it is, so it may be called again at any time.
    Raise UsageError while a session is being recorded, TraceError, WriteError.
    """
    path = Path(path)
    for facts in manifest.read(path).sessions:
        if session is None and _is_live(path, facts):
            raise UsageError(f"{path} is being recorded by process {facts.pid}: it is sealed when that ends", path=path)
    with _lock(path), _translated(path):
        if session is None:
            _sweep(path)
        return _finish(TailSealer(path), path, session)


def _sweep(path: Path) -> None:
    """Remove what a killed sealer had not given its name yet."""
    for name, _, files in os.walk(path):
        for file in files:
            if _UNNAMED.fullmatch(file):
                Path(name, file).unlink(missing_ok=True)


def _is_live(path: Path, facts: SessionFacts) -> bool:
    if standing(facts) != "running":
        return False
    if facts.host == socket.gethostname():
        return True
    # The process of another machine cannot be asked; one that has written nothing for a while is taken for dead.
    written = [tail.stat().st_mtime for tail in segments.list_tails(path).values()]
    return bool(written) and time.time() - max(written) < _SILENT_SECONDS


def _finish(sealer: TailSealer, path: Path, session: int | None) -> list[str]:
    done = sealer.seal(session, rolled_only=False)
    for facts in manifest.read(path).sessions:
        if facts.status == "running" and session in (None, facts.session):
            ended = _ended(path, facts)
            manifest.amend(path, lambda now, ended=ended: now.with_session(ended))
            done.append(f"session {facts.session} {ended.status}")
    chain = Chain(path)
    if chain.sealed and not index.is_fresh(chain):
        index.build(chain)
        done.append(f"index.duckdb built over {len(chain.sealed)} segments")
    return done


class TailSealer:
    """Seals the tails of one trace, one after the other; it remembers what it knows of the segments before."""

    def __init__(self, path: Path, run: Callable[[int, Callable[[], Any]], Any] | None = None) -> None:
        """Of the trace at `path`; nothing is read yet. `run` does what seals one tail; it is told how many wait."""
        self._path = path
        self._run = run or _at_once
        self._begun: dict[Key, SegmentWriter] = {}
        """What was done ahead for the tail that grows."""
        self._columns = {name: tables.Columns(schema.names) for name, schema in tables.SCHEMAS.items()}
        self._known: set[Key] = set()

    def seal(self, session: int | None, *, rolled_only: bool) -> list[str]:
        """Seal the tails of `session` (of all where None); `rolled_only`: those that are followed by another.

        Return what was done, a line each. Raise OSError where the disk refuses, TraceError.
        """
        tails = segments.list_tails(self._path)
        rolled = {key: (key[0], key[1] + 1) in tails for key in sorted(tails)}
        chosen = [key for key in rolled if session in (None, key[0]) and (rolled[key] or not rolled_only)]
        done = []
        for place, key in enumerate(chosen):
            self._learn()
            done += self._run(len(chosen) - place, partial(self._seal_one, key, tails[key], rolled=rolled[key]))
        return done

    def advance(self, session: int) -> None:
        """Do for the tail of `session` that grows what its end will not change. Raise OSError, TraceError."""
        tails = {key: tail for key, tail in segments.list_tails(self._path).items() if key[0] == session}
        if len(tails) != 1:
            return  # those before it are sealed first: they name columns, and hold its samples' neighbours
        ((key, tail),) = tails.items()
        if key not in self._begun:
            self._learn()
            writer = None if key in self._known else self._begin(key, OpenSegment(tail, key))
            if writer is None:
                return
            self._begun[key] = writer
        self._run(1, self._begun[key].advance)

    def hurry(self) -> None:
        """From now on nothing is left to wait for."""
        self._run = _at_once

    def _learn(self) -> None:
        """Learn the names of columns from the segments that another sealed, in their order."""
        for key, path in segments.list_commits(self._path).items():
            if key not in self._known:
                for name, known in segments.read_commit(path)["columns"].items():
                    self._columns[name].learn(known)
                self._known.add(key)

    def _seal_one(self, key: Key, tail: Path, *, rolled: bool) -> list[str]:
        if key in self._known:
            # Killed between the commit and the removal of the tail.
            tail.unlink(missing_ok=True)
            return [f"{tail.name} was sealed before"]
        begun = self._begun.pop(key, None)
        segment = begun.segment if begun is not None else OpenSegment(tail, key)
        segment.refresh()
        if rolled and segment.torn_bytes:
            segment.refresh()  # its last record is written when the next file is there: just now, maybe
        writer = begun or self._begin(key, segment)
        if writer is None:
            return [_unsealed(segment, rolled=rolled)]
        if rolled and segment.torn_bytes and not segment.damage:
            writer.damage.append(f"{tail}: its last {segment.torn_bytes} bytes are damaged")
        writer.seal()
        self._known.add(key)
        segment.close()
        return [f"{tail.name} sealed: {len(segment.steps)} steps", *writer.damage]

    def _begin(self, key: Key, segment: OpenSegment) -> SegmentWriter | None:
        segment.refresh()
        facts = manifest.read(self._path).session(key[0])
        if not segment.begin or facts is None:
            return None
        write_group(self._path / "tensors.zarr")
        return SegmentWriter(self._path, segment, facts, segments.Batch(), self._columns)


def _at_once(_waiting: int, act: Callable[[], Any]) -> Any:
    return act()


def _unsealed(segment: OpenSegment, *, rolled: bool) -> str:
    """A tail that cannot be sealed is kept, unless its process was killed before anything was in it."""
    segment.close()
    tail = segment.path
    if not segment.records and (tail.stat().st_size <= len(MAGIC) or (segment.damage is None and not rolled)):
        tail.unlink()
        return f"{tail.name} was empty"
    # Never thrown away: what this version cannot read, or place, may still be read by another, or by hand.
    return f"{tail.name} cannot be sealed: damaged, or of a session that trace.json lacks; it is kept"


def _ended(path: Path, facts: SessionFacts) -> SessionFacts:
    """How a session that still says `running` ended: as its close record says; without one it crashed."""
    closed, last, segment = None, facts.started, None
    for commit in segments.list_commits(path).values():
        found = segments.read_commit(commit)
        if found["session"] == facts.session:
            closed = found["closed"] or closed
            last = max(last, found["last_time"] or last)
            segment = found["seq"]
    if closed is not None:
        return replace(facts, status=closed["status"], ended=closed["time"])
    return replace(facts, status="crashed", ended=last, last_segment=segment)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One sealer at a time."""
    with open(path / "seal.lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be sealed: {error}", path=path) from error


def watch(path: Path, session: int) -> int:
    """Seal what is rolled until standard input ends, then the rest. Return the exit code."""
    parent = os.getppid()
    sealer = TailSealer(path, _paced)
    indexed = 0
    said = ""
    while not _over(parent):
        try:
            with _lock(path):
                sealer.seal(session, rolled_only=True)
                sealer.advance(session)
                indexed = at_niceness(_NICE[0], partial(_index_again, path, indexed))
        except (OSError, RewindError) as error:
            # What was begun is begun anew: part of it may have been written.
            sealer = TailSealer(path, _paced)
            if str(error) != said:
                said = str(error)
                _say(f"sealing {path} failed, it is tried again: {said}")
            time.sleep(1)
    sealer.hurry()
    try:
        with _lock(path), _translated(path):
            _finish(sealer, path, session)
    except RewindError as error:
        _say(str(error))
        return 1
    return 0


def _paced(waiting: int, act: Callable[[], Any]) -> Any:
    """The more tails wait, the less it yields: each takes who opens the run longer than a segment, and more of the disk."""
    return at_niceness(_NICE[min(waiting, len(_NICE)) - 1], act)


def at_niceness(nice: int, act: Callable[[], Any]) -> Any:
    """Do `act` in a thread of its own, so much nicer than this one: on Linux a thread can yield more, but not less again."""
    with ThreadPoolExecutor(1, initializer=os.nice, initargs=(nice,)) as pool:
        return pool.submit(act).result()


def _index_again(path: Path, indexed: int) -> int:
    """Build the index of a long run now and then, so that who opens it need not read all segments; return its size.

    It is built whenever there are half as many segments again: all builds together then cost a few of the last.
    """
    count = len(segments.list_commits(path))
    if count - indexed < max(_INDEX_EVERY, indexed // 2):
        return indexed
    index.build(Chain(path))
    return count


def _over(parent: int) -> bool:
    """Wait a little; return whether standard input has ended, or the process that started us is gone."""
    ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
    return (bool(ready) and not os.read(0, 4096)) or os.getppid() != parent


def _say(line: str) -> None:
    sys.stderr.write(f"rewind: {line}\n")


class _WithoutPandas(MetaPathFinder):
    """Arrow loads pandas, where there is one, as soon as it converts a list: that takes longer than sealing most runs."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError("the sealer needs no pandas")


def main(arguments: list[str]) -> int:
    """Run the process: TRACE --session S."""
    # A Ctrl-C goes to the whole terminal group: the recording ends by it, and then tells us by closing our input.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.meta_path.insert(0, _WithoutPandas())
    blosc.use_threads = False
    return watch(Path(arguments[0]), int(arguments[2]))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(
        code
    )  # The recording waits for the end: all is on disk, and taking down what was loaded takes longer than a step.
