"""What of a trace is not as it was written: every file held against its sums, nothing re-executed.

`structural` needs no tensor: segments and steps that are missing, tails that end too early. `damages` reads everything.
Room: tracer. May touch: reads the trace it is given.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING

import duckdb

from tracer import addenda, beside, segments
from tracer.chain import Chain
from tracer.errors import DamageError, MissingDataError
from tracer.manifest import is_source
from tracer.store import open_array

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracer.manifest import SessionFacts
    from tracer.open_segment import OpenSegment
    from tracer.sealed_segment import SealedSegment
    from tracer.segments import Segment


def damages(path: Path) -> list[str]:
    """Everything in the trace at `path` that is not what was written, a line each; nothing where all is well.

    Raise NotATraceError, FormatVersionError, DamageError where trace.json itself cannot be read.
    """
    chain = Chain(path)
    found = [*structural(chain)]
    for sealed in chain.sealed.values():
        found += [*_said(sealed), *_rows(chain, sealed)]
    for tail in chain.open.values():
        found += _records(tail)
    return [*found, *_arrays(path / "tensors.zarr"), *index_damage(path), *_sources(chain), *_beside(chain)]


def structural(chain: Chain) -> Iterator[str]:
    """What is missing or cut short, told from commits and the headers of tails, a line each."""
    for tail in chain.open.values():
        yield from _tail(tail, followed=(tail.session, tail.sequence + 1) in {**chain.open, **chain.sealed})
    by_session: dict[int, list[Segment]] = {}
    for segment in chain:
        by_session.setdefault(segment.session, []).append(segment)
    for facts in chain.manifest.sessions:
        yield from _session(chain, facts, by_session.pop(facts.session, []))
    for session in by_session:
        yield f"{chain.path}: trace.json knows nothing of session {session}"
    yield from _addenda(chain.path)
    for facts in chain.manifest.sessions:
        yield from beside.missing(chain.path, facts)


def _tail(tail: OpenSegment, *, followed: bool) -> Iterator[str]:
    if tail.damage is not None:
        yield f"{tail.damage}; what follows there cannot be read"
        return
    if followed and tail.torn_bytes:
        tail.refresh()  # it was just being ended, maybe: its last record comes after the next file is there
    if followed and tail.torn_bytes:
        yield f"{tail.path}: its last {tail.torn_bytes} bytes are damaged"


def _session(chain: Chain, facts: SessionFacts, own: list[Segment]) -> Iterator[str]:
    name = f"{chain.path}: session {facts.session}"
    try:
        held = [segment for segment in own if segment.steps.runs]
        for a, b in pairwise(held):
            last, first = a.steps.runs[-1][1], b.steps.runs[0][0]
            if first != last + 1:
                yield f"{name}: steps {last + 1} to {first - 1} are missing"
        for segment in held:
            for (_, last), (first, _) in pairwise(segment.steps.runs):
                yield f"{name}: steps {last + 1} to {first - 1} are missing"
        if held and held[0].steps.runs[0][0] > facts.first_step:
            yield f"{name}: steps {facts.first_step} to {held[0].steps.runs[0][0] - 1} are missing"
        passed = held[-1].steps.runs[-1][1] + 1 if held else facts.first_step
        begun = max((segment.first_step for segment in own), default=0)
        # A file is begun while the step before it is still to be written down: whoever is ended then loses that one.
        if begun > passed + (facts.status != "finished"):
            yield f"{name}: steps {passed} to {begun - 1} are missing"
        yield from _end(name, facts, own, held)
    except DamageError as error:
        yield str(error)


def _end(name: str, facts: SessionFacts, own: list[Segment], held: list[Segment]) -> Iterator[str]:
    """Whether the end of the session is there: its last record, or the last segment that it had when it was found dead."""
    if facts.status not in ("running", "crashed") and not any(segment.closed for segment in own):
        yield f"{name} {facts.status}, but its end is missing: {_after(held)}"
    elif facts.last_segment is not None and facts.last_segment > max((s.sequence for s in own), default=-1):
        yield f"{name} {facts.status} in segment {facts.last_segment}, which is missing: {_after(held)}"


def _after(held: list[Segment]) -> str:
    return f"what came after step {held[-1].steps.runs[-1][1]}" if held else "all of it"


def _said(segment: SealedSegment) -> Iterator[str]:
    """A sealed segment: its commit, what was lost when it was sealed, its tables."""
    try:
        yield from segment.damage
        for name in segment.files:
            try:
                segment.open_table(name).table()
            except DamageError as error:
                yield str(error)
    except DamageError as error:
        yield str(error)


def _rows(chain: Chain, segment: SealedSegment) -> Iterator[str]:
    """The arrays that the commit names: whether they are there, and have its rows."""
    name = segments.name_of((segment.session, segment.sequence))
    try:
        for array, rows in segment.rows_of():
            lost = chain.arrays.get(array).lacks(rows) if len(rows) else None
            if lost is not None:
                yield f"{chain.arrays.root / array}: row {lost} of segment {name} is missing"
    except MissingDataError as error:
        yield f"{error}, which segment {name} names: it is missing"
    except DamageError:
        return  # named where all arrays are looked through


def _records(tail: OpenSegment) -> Iterator[str]:
    """The sections of all records of a tail."""
    for record in tail.records:
        for section in record.sections:
            try:
                record.read(section.name)
            except DamageError as error:
                yield str(error)
    for state in tail.state_records:
        try:
            tail.words(state)
        except DamageError as error:
            yield str(error)


def _arrays(root: Path) -> Iterator[str]:
    found = {description.parent for description in root.rglob("zarr.json")}
    groups = {parent for array in found for parent in array.parents if parent.is_relative_to(root)}
    for group in sorted(groups - found):
        yield f"{group / 'zarr.json'} is missing: other readers of Zarr do not find what lies below it"
    for description in sorted(root.rglob("zarr.json")):
        try:
            array = open_array(description.parent)
        except MissingDataError:
            continue  # a group
        except DamageError as error:
            yield str(error)
            continue
        yield from array.damages()


def _addenda(path: Path) -> Iterator[str]:
    yield from addenda.missing(path)
    for file in addenda.files(path):
        try:
            addenda.read(file)
        except DamageError as error:
            yield str(error)
        yield from addenda.array_damages(file)


def index_damage(path: Path) -> Iterator[str]:
    """index.duckdb says nothing that metrics/ does not say: where it cannot be read it is built anew."""
    file = path / "index.duckdb"
    if not file.exists():
        return
    try:
        with duckdb.connect(str(file), read_only=True) as db:
            for (name,) in db.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall():
                db.execute(f'SELECT * FROM "{name}"').fetchall()
    except duckdb.Error as error:
        yield f"{file} is damaged ({' '.join(str(error).split())[:200]}): `rewind repair` builds it anew"


def _sources(chain: Chain) -> Iterator[str]:
    for name in chain.manifest.program.sources.values():
        file = chain.path / name
        try:
            if not is_source(name, file.read_bytes()):
                yield f"{file} is damaged"
        except OSError as error:
            yield f"{file} cannot be read: {error}"


def _beside(chain: Chain) -> Iterator[str]:
    for facts in chain.manifest.sessions:
        own = [segment for segment in chain if segment.session == facts.session]
        yield from beside.damages(chain.path, facts, _position(own))


def _position(own: list[Segment]) -> int:
    """How many events a session's log had at its last keyframe that can be read."""
    for segment in reversed(own):
        with contextlib.suppress(DamageError, MissingDataError):
            if segment.keyframes:
                return segment.keyframe(max(segment.keyframes))[0].get("files") or 0
    return 0
