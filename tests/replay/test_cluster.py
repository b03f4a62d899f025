"""Hindsight on a Dask cluster of its own processes, as `dask scheduler` and `dask worker` start them (B3, B9)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from replay import cluster, hindsight
from tracer.errors import UsageError

HOUSE = Path(__file__).parents[2]
WORKER = ("distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
FUNCTION = (
    "def {name}(step):\n    moved = step.next_state['fc.bias'] - step.state['fc.bias']\n    return {{'moved': moved}}\n"
)


class Cluster:
    """A scheduler and its workers, each a process."""

    def __init__(self, folder: Path) -> None:
        """Begin them; `address` waits for the scheduler."""
        self._folder, self._place = folder, folder / "scheduler.json"
        place = ("--scheduler-file", str(self._place))
        self.scheduler = self._begin(
            "distributed.cli.dask_scheduler", *place, "--host=127.0.0.1", "--port=0", "--no-dashboard", "--no-show"
        )
        self.workers = [self._begin(*WORKER, *place, "--local-directory", str(folder)) for _ in range(2)]

    def _begin(self, module: str, *options: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
        with (self._folder / "output.txt").open("ab") as output:
            command = [sys.executable, "-m", module, *options]
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    @property
    def address(self) -> str:
        while not self._place.exists():
            assert self.scheduler.poll() is None, (self._folder / "output.txt").read_text()
            time.sleep(0.02)
        return json.loads(self._place.read_text())["address"]

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("dask"))
    yield made
    made.end()


def write(folder, name):
    (folder / f"{name}.py").write_text(FUNCTION.format(name=name))
    return f"{folder / name}.py:{name}"


@pytest.fixture(scope="module")
def alone(basic, tmp_path_factory):
    done = hindsight(basic, write(tmp_path_factory.mktemp("alone"), "alone"))
    assert done.verdicts == {"verified": 24}
    return done


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECTING", 0.5)
    monkeypatch.setattr(cluster, "ALONE", 0.5)


def test_a_cluster_answers_to_the_bit_what_one_process_does(dask, basic, alone, tmp_path):
    shared = hindsight(basic, write(tmp_path, "shared"), scheduler=dask.address)
    assert shared.verdicts == alone.verdicts
    assert np.array_equal(shared.arrays["moved"].view(np.uint32), alone.arrays["moved"].view(np.uint32))


def test_a_worker_that_cannot_do_it_is_named_and_lives(dask, tmp_path):
    with cluster._far(dask.address) as client:
        with pytest.raises(UsageError, match=r"does not see .*: the trace must lie at that path there"):
            cluster._prove(client, dask.address, tmp_path, "replay.hindsight:work")
        with pytest.raises(UsageError, match=r"has no Rewind like this one .*No module named 'nowhere'"):
            cluster._prove(client, dask.address, tmp_path, "nowhere.hindsight:work")
        assert dask.workers[0].poll() is None
        client.wait_for_workers(2, timeout=60)


def test_an_address_where_nobody_listens_is_one_line(basic, tmp_path, impatient):
    with pytest.raises(UsageError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9") as error:
        hindsight(basic, write(tmp_path, "nobody"), scheduler="tcp://127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_workers_that_are_killed_lose_nothing(dask, basic, alone, tmp_path, impatient):
    """One of two: the other does its work. The last one: it is said, and the next run goes on with what was answered."""
    done = hindsight(basic, write(tmp_path, "one"), scheduler=dask.address, progress=lambda *_: dask.workers[0].kill())
    assert dask.workers[0].wait() == -9
    assert np.array_equal(done.arrays["moved"], alone.arrays["moved"])
    function, seen = write(tmp_path, "last"), []
    with pytest.raises(UsageError, match="no workers any more: what was answered is kept, ask again to go on"):
        hindsight(basic, function, scheduler=dask.address, progress=lambda *_: dask.workers[1].kill())
    done = hindsight(basic, function, progress=lambda n, total: seen.append(n))
    assert 0 < seen[0] < 24
    assert np.array_equal(done.arrays["moved"], alone.arrays["moved"])
    with pytest.raises(UsageError, match=r"has no workers: start one \(`dask worker`\)"):
        hindsight(basic, write(tmp_path, "none"), scheduler=dask.address)


def test_a_scheduler_that_is_gone_is_one_line(dask, impatient):
    with cluster._far(dask.address) as client:
        answers = cluster.answers(client, dask.address, len, [("three",)])
        dask.scheduler.kill()
        with pytest.raises(UsageError, match=r"is gone .*: what was answered is kept"):
            list(answers)
