"""Disks that refuse, fail, lose or delay: training never dies, hangs or changes; what is in the trace is true, what is lost is
named, and where there is room again it goes on. # S0.4
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import subprocess
import time

import pytest
import torch

import tracer
import tracer.errors
from tests.tracer.training import train_rows
from tracer import journal, manifest
from tracer.lost import lost_steps
from tracer.repair import repair

STEPS = 12
CALLS = ("write", "writev", "fdatasync", "fsync", "ftruncate", "lseek")


train = functools.partial(train_rows, steps=STEPS, momentum=0.5)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """What a healthy disk gets: final weights, and each state and batch."""
    path = tmp_path_factory.mktemp("truth") / "t"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracer.recorder.Sealer", NoSealer)
        with tracer.record(path, detail="full"):
            final = train()
    with tracer.open_trace(path) as trace:
        return final, [trace.state(k)["weight"] for k in range(STEPS + 1)], [trace.batch(k)[0] for k in range(STEPS)]


class NoSealer:
    def __init__(self, path, session):
        pass

    def finish(self):
        pass


def check(path, truth, final) -> int:
    """Training as without; what can be read is true; the rest is named. Return how many steps are there."""
    assert all(torch.equal(truth[0][name], value) for name, value in final.items())
    try:
        trace = tracer.open_trace(path)
    except tracer.errors.NotATraceError:
        return 0  # nothing could be begun at all
    with trace:
        there = list(trace.recorded_steps)
        for k in there:
            assert torch.equal(trace.batch(k)[0], truth[2][k]), k
        for k in trace.stored_states:
            assert torch.equal(trace.state(k)["weight"], truth[1][k]), k
        assert trace.sql("select step from steps order by step").fetchall() == [(k,) for k in there]
        missing = sorted(set(range(there[0] if there else 0, there[-1] + 1 if there else 0)) - set(there))
        assert [k for a, b in lost_steps(trace) for k in range(a, b + 1) if k >= (there or [0])[0]] == missing
        return len(there)


class Faults:
    """The n-th call that changes a file fails, and so many after it; a short write before, where `short`."""

    def __init__(self, patch, folder, first: int, count: int, number: int, *, short: bool = False) -> None:
        self.calls = 0
        self._real = {name: getattr(os, name) for name in CALLS}
        self._folder, self._first, self._last, self._number = str(folder), first, first + count, number
        self._short = short
        for name in CALLS:
            patch.setattr(os, name, lambda fd, *args, name=name: self._call(name, fd, *args))

    def _call(self, name, fd, *args):
        if not os.readlink(f"/proc/self/fd/{fd}").startswith(self._folder):
            return self._real[name](fd, *args)
        self.calls += 1
        if self._first <= self.calls < self._last:
            if self._short and name == "writev" and self.calls == self._first:
                return self._real["write"](fd, bytes(args[0][0])[:7])
            raise OSError(self._number, os.strerror(self._number))
        return self._real[name](fd, *args)


def calls_of(tmp_path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "SYNC_SECONDS", 0.0)
        faults = Faults(patch, tmp_path / "count", 10**9, 0, 0)
        with tracer.record(tmp_path / "count", detail="full"):
            train()
        return faults.calls


@pytest.mark.parametrize(
    ("count", "number", "short"), [(1, errno.EIO, False), (4, errno.ENOSPC, True), (10**6, errno.EIO, False)]
)
def test_the_nth_write_fails_for_every_n(unsealed, tmp_path, truth, monkeypatch, caplog, count, number, short):
    monkeypatch.setattr(journal, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(manifest, "_PATIENCE", (0.0,) * 4)
    total = calls_of(tmp_path)
    assert total > STEPS
    for n in range(1, total + 1, 1 if "REWIND_FLIPS" in os.environ else 9):
        path = tmp_path / f"t{n}"
        with monkeypatch.context() as patch:
            patch.setattr(journal, "SYNC_SECONDS", 0.0)
            Faults(patch, path, n, count, number, short=short)
            caplog.clear()
            try:
                with tracer.record(path, detail="full", overwrite=True):
                    final = train()
            except tracer.errors.WriteError:
                assert count > 4, "what fails for good before the training begins is said at once"
                continue
        assert all(torch.equal(truth[0][name], value) for name, value in final.items())
        assert "recording stopped" not in caplog.text, n
        found = check(path, truth, final)
        assert count > 4 or found >= STEPS - 6, (n, found)
        if "the end of" in caplog.text:
            continue  # it could not be noted: the recording counts as going on for as long as this process lives
        repair(path)
        assert check(path, truth, final) == found


def test_a_file_system_that_is_full_and_has_room_again(tmp_path, truth, monkeypatch, alone):
    """A real one, of 600 KB: filled up by another in mid-run, and freed."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("only root can mount a small file system")
    monkeypatch.setattr(journal, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr("tracer.recorder.Sealer", NoSealer)
    try:
        ballast = place / "ballast"

        def fill(k):
            if k == 4:
                with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
            if k == 8:
                ballast.unlink()

        with tracer.record(place / "t", detail="full"):
            final = train(fill)
        assert STEPS - 6 <= check(place / "t", truth, final) < STEPS
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_slow_disk_delays_and_loses_nothing(unsealed, tmp_path, truth, monkeypatch):
    real = os.writev

    def slow(fd, buffers):
        time.sleep(0.01)
        return real(fd, buffers)

    monkeypatch.setattr(os, "writev", slow)
    with tracer.record(tmp_path / "t", detail="full"):
        final = train()
    assert check(tmp_path / "t", truth, final) == STEPS


@pytest.mark.parametrize("synced", range(0, 12, 3))
def test_a_power_cut_loses_what_was_not_synced(unsealed, tmp_path, truth, monkeypatch, synced):
    """What lies behind the last fdatasync is gone, or zeros; the rest is there, and the trace opens."""
    monkeypatch.setattr(journal, "SYNC_SECONDS", 10**9)
    path = tmp_path / "t"
    sizes = {}

    def at_step(k):
        if k == synced:
            sizes.update({f: f.stat().st_size for f in (path / "tail").iterdir()})

    with tracer.record(path, detail="full"):
        final = train(at_step)
    for zeros in (False, True):
        for file, size in sizes.items():
            data = file.read_bytes()
            file.write_bytes(data[:size] + (bytes(len(data) - size) if zeros else b""))
        found = check(path, truth, final)
        assert found >= synced - 1
    repair(path)
    assert check(path, truth, final) == found
