"""A power cut takes what was not asked onto the disk, names as well as bytes: what is sealed does not rest on luck. # S0.4

The disk is modelled at its worst: a file's bytes are there once it was synced, a name once its folder was, and what was
taken away is gone at once.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tracer
from tests.tracer.synthetic import make_trace
from tests.tracer.training import train
from tracer import addenda, manifest
from tracer.sealer import seal

STEPS = 12


class Disk:
    """What of a folder a power cut would leave, told from the calls that change it."""

    def __init__(self, root: Path, patch) -> None:
        self.root = root.resolve()
        self.durable = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        self.synced: dict[int, bytes] = {}
        self._cut: dict[Path, bytes] | None = None
        self.moments = 0
        for name in ("replace", "unlink", "fdatasync", "fsync"):
            patch.setattr(os, name, self._watching(getattr(os, name), getattr(self, f"_{name}")))

    def _watching(self, real, note):
        def call(*args, **options):
            result = real(*args, **options)
            note(*args)
            return result

        return call

    def _fdatasync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self._names(path)
        elif path.is_relative_to(self.root):
            self.synced[os.fstat(fd).st_ino] = path.read_bytes()

    _fsync = _fdatasync

    def _names(self, folder: Path) -> None:
        for path in folder.iterdir():
            if path.is_file():
                self.durable[path] = self.synced.get(path.stat().st_ino, self.durable.get(path, b""))

    def _replace(self, a, b) -> None:
        self._moment()

    def _unlink(self, path) -> None:
        self.durable.pop(Path(path).resolve(), None)
        self._moment()

    def _moment(self) -> None:
        self.moments += 1

    def left(self, at: Path) -> Path:
        """The folder as the cut leaves it."""
        for path, data in self.durable.items():
            target = at / path.relative_to(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return at


class Cut(BaseException):
    """The power is gone."""


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    """How often sealing gives or takes a name."""
    path = tmp_path_factory.mktemp("moments") / "t"
    make_trace(path, STEPS, 3, 8, seal=False, roll=6, grads=True)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(path, patch)
        seal(path)
    return disk.moments


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 1.0])
def test_sealing_loses_nothing_at_any_moment(tmp_path, moments, part):
    path = tmp_path / "again"
    truth = make_trace(path, STEPS, 3, 8, seal=False, roll=6, grads=True)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(path, patch)

        def moment():
            disk.moments += 1
            if disk.moments >= part * moments:
                raise Cut

        disk._moment = moment
        with pytest.raises(Cut):
            seal(path)
    left = disk.left(tmp_path / "left")
    for repaired in (False, True):
        if repaired:
            seal(left)
        with tracer.open_trace(left) as trace:
            assert trace.steps == STEPS
            assert trace.damage() == []
            for k, weight in truth.weight.items():
                assert np.array_equal(trace.state(k)["encoder.weight"], weight), k
            for k, batch in truth.batches.items():
                assert np.array_equal(trace.batch(k)[0], batch), k
            assert trace.sql("select count(*) from steps").fetchall() == [(STEPS,)]


def test_what_is_listed_is_there(tmp_path):
    """Of a hindsight file the bytes and the name come before the list that misses it."""
    make_trace(tmp_path / "t", STEPS, 3, 8)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path / "t", patch)
        addenda.write_hindsight(tmp_path / "t", "norm", "abc", [(k, "norm", k / 3) for k in range(STEPS)])
    left = disk.left(tmp_path / "left")
    assert manifest.read(left).addenda == ("hindsight/norm-abc.parquet",)
    assert addenda.missing(left) == []
    assert addenda.hindsight(left).num_rows == STEPS


def test_the_facts_of_a_run_are_there_once_they_are_written(unsealed, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path, patch)
        with tracer.record(tmp_path / "t"):
            train(epochs=1)
    left = disk.left(tmp_path / "left")
    assert manifest.read(left / "t").sessions[0].status == "finished"
