"""Readers and sealers at every moment of one another, by arithmetic and not by chance: whatever was recorded is there. # S0.4, S1.3

The trace as it was after each act of recorder and sealer is kept aside; a reader's path is a link that is moved on between
any two of its own acts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tracer
from tests.tracer.training import train, train_rows
from tracer import journal, manifest, segments
from tracer.open_segment import OpenSegment
from tracer.repair import repair
from tracer.sealer import seal

FIRST, SECOND = 4, 5
STEPS = FIRST + SECOND


def crashed(path) -> None:
    """As if the process had been killed."""

    def killed(facts):
        for session in facts.sessions:
            facts = facts.with_session(replace(session, status="running", ended=None, pid=2**22 + 1))
        return facts

    manifest.amend(path, killed)


class Moments:
    """The trace after each act that gives or takes a name, as copies that share their files."""

    def __init__(self, path: Path, place: Path) -> None:
        self.path, self.place = path, place
        self.all: list[Path] = []
        self.note()

    def note(self) -> None:
        copy = self.place / f"{len(self.all):04d}"
        shutil.copytree(self.path, copy, copy_function=os.link)
        self.all.append(copy)

    def watch(self, patch) -> None:
        names, unlink = os.replace, Path.unlink
        patch.setattr(os, "replace", lambda a, b: (names(a, b), self.note()))
        patch.setattr(Path, "unlink", lambda path, **options: (unlink(path, **options), self.note()))


@pytest.fixture(scope="module")
def sealing(tmp_path_factory):
    """(the trace at every moment of its sealing, its states): a session that was resumed, each of its steps a segment."""
    place = tmp_path_factory.mktemp("moments")
    path = place / "t"
    truth = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracer.recorder.Sealer", NoSealer)
        patch.setattr(journal, "ROLL_BYTES", 8)
        with tracer.record(path, detail="full"):
            train_rows(steps=FIRST)
        with tracer.record(path, append=True):
            train(epochs=1)
    crashed(path)
    with tracer.open_trace(path) as trace:
        truth = [trace.state(k)["weight"] for k in range(trace.steps + 1)]
        assert (trace.steps, len(trace.sessions)) == (STEPS, 2)
    moments = Moments(path, place)
    with pytest.MonkeyPatch.context() as patch:
        moments.watch(patch)
        seal(path)
    assert len(moments.all) > 100
    return moments.all, truth


class NoSealer:
    def __init__(self, path, session):
        pass

    def finish(self):
        pass


def check(trace, truth) -> None:
    assert trace.recorded_steps.runs == ((0, STEPS - 1),)
    assert trace.stored_states.runs == ((0, STEPS),)
    for k, weight in enumerate(truth):
        assert torch.equal(trace.state(k)["weight"], weight), k


class Reader:
    """A path at which the trace moves on while it is read: by `stride` moments at each act of the reader."""

    def __init__(self, patch, place: Path, moments, start: int, stride: int) -> None:
        self.path = place / "now"
        self._moments, self._now, self._stride = moments, start - stride, stride
        self._move()
        for where, name in ((segments, "list_tails"), (segments, "list_commits"), (manifest, "read")):
            patch.setattr(where, name, self._first(getattr(where, name)))
        patch.setattr(OpenSegment, "__init__", self._first(OpenSegment.__init__))

    def _first(self, act):
        def moved(*arguments):
            self._move()
            return act(*arguments)

        return moved

    def _move(self) -> None:
        self._now = min(self._now + self._stride, len(self._moments) - 1)
        link = self.path.with_suffix(".next")
        link.symlink_to(self._moments[self._now])
        os.rename(link, self.path)


@pytest.mark.parametrize("stride", [1, 7, 40])
def test_a_reader_that_opens_while_it_is_sealed(sealing, tmp_path, stride):
    moments, truth = sealing
    for start in range(0, len(moments), 3):
        with pytest.MonkeyPatch.context() as patch:
            reader = Reader(patch, tmp_path, moments, start, stride)
            with tracer.open_trace(reader.path) as trace:
                check(trace, truth)
                trace.refresh()
                check(trace, truth)
                if start % 30 == 0:
                    assert trace.sql("select step from steps order by step").fetchall() == [(k,) for k in range(STEPS)]


@pytest.mark.parametrize("again", [False, True], ids=["killed", "killed twice"])
def test_a_sealer_that_is_killed_anywhere(sealing, tmp_path, again):
    moments, truth = sealing
    for number, moment in enumerate(moments[:: 23 if again else 13]):
        path = tmp_path / str(number)
        shutil.copytree(moment, path)
        if again:
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                patch.setattr(os, "replace", killed_at(number % 11, os.replace))
                seal(path)
        found = repair(path)
        assert not [line for line in found if "damaged" in line or "missing" in line], found
        with tracer.open_trace(path) as trace:
            check(trace, truth)


def killed_at(number, act):
    count = itertools.count()

    def until(*arguments):
        if next(count) == number:
            raise KeyboardInterrupt
        return act(*arguments)

    return until


@pytest.mark.parametrize("torn", [0, 5, 8, 30], ids=["no byte", "half its name", "no record", "half a record"])
def test_a_recorder_that_is_killed_as_it_begins_a_file(unsealed, tmp_path, monkeypatch, torn):
    """The file does not say yet where it begins: it must not be in the way of those that do."""
    monkeypatch.setattr(journal, "ROLL_BYTES", 8)
    path = tmp_path / "t"
    with tracer.record(path, detail="full"):
        train_rows(steps=12)
    crashed(path)
    last = max((path / "tail").iterdir())
    last.write_bytes(last.read_bytes()[:torn])
    with tracer.open_trace(path) as trace:
        assert trace.steps == 12
        truth = [trace.state(k)["weight"] for k in trace.stored_states]
        assert len(truth) == 13
        assert [trace.batch(k) for k in range(12)]
    assert not [line for line in repair(path) if "damaged" in line or "missing" in line]
    with tracer.open_trace(path) as trace:
        assert all(torch.equal(trace.state(k)["weight"], weight) for k, weight in enumerate(truth))


def test_a_recorder_that_is_killed_before_its_first_step(unsealed, tmp_path, monkeypatch):
    path = tmp_path / "t"
    with tracer.record(path, detail="full"):
        train_rows(steps=1)
    crashed(path)
    tail = path / "tail" / "0000-000000.log"
    kinds = {record.kind: record for record in tracer.tail.read_tail(tail)}
    with tracer.open_trace(path) as trace:
        before = trace.state(0)["weight"]
    os.truncate(tail, kinds["state"].end)
    with tracer.open_trace(path) as trace:
        assert (trace.steps, trace.has_state(0)) == (0, True)
        assert torch.equal(trace.state(0)["weight"], before)


def test_two_who_write_down_how_their_sessions_stand_at_once(unsealed, tmp_path, monkeypatch):
    """The sealer of a killed session says how it ended, while the next one begins: neither is forgotten."""
    path = tmp_path / "t"
    with tracer.record(path, detail="full"):
        train_rows(steps=2)
    crashed(path)
    put = manifest._put

    def meanwhile(where, data):
        monkeypatch.setattr(manifest, "_put", put)
        with pytest.raises(BlockingIOError):
            manifest.amend(path, lambda facts: facts)
        put(where, data)

    flock = manifest.fcntl.flock
    monkeypatch.setattr(manifest.fcntl, "flock", lambda fd, how: flock(fd, how | manifest.fcntl.LOCK_NB))
    monkeypatch.setattr(manifest, "_put", meanwhile)
    seal(path, 0)
    assert manifest._put is put
    assert manifest.read(path).sessions[0].status != "running"


def test_an_app_left_open_over_a_resumed_run_shows_the_new_steps(unsealed, tmp_path):
    from apps.recorded import Recorded

    path = tmp_path / "t"
    with tracer.record(path, detail="full"):
        train_rows(steps=6)
    run = Recorded(tracer.open_trace(path))
    run.keep(4, {"weight": torch.zeros(3, 80)})
    assert not run.weight("weight", 4).any()
    old = run.batch(4)
    with tracer.record(path, append=True, at=3):
        train(epochs=1)
    assert run.trace.refresh()
    run.refresh()
    with tracer.open_trace(path) as trace:
        assert trace.superseded == {0: 3}
        assert run.weight("weight", 4).tolist() == trace.state(4)["weight"].tolist()
    assert run.batch(4) != old


def test_what_a_lost_session_had_superseded_does_not_come_back(unsealed, tmp_path):
    path = tmp_path / "t"
    with tracer.record(path, detail="full"):
        train_rows(steps=6)
    with tracer.record(path, append=True, at=3):
        train(epochs=1)
    tail = path / "tail" / "0001-000000.log"
    for damaged in (b"", tail.read_bytes()[:8], b"x" * 100, None):
        tail.unlink() if damaged is None else tail.write_bytes(damaged)
        with tracer.open_trace(path) as trace:
            assert (trace.steps, trace.recorded_steps.runs) == (3, ((0, 2),))
            assert not trace.has_state(3)
            assert "all of it" in " ".join(trace.damage())
