"""Deaths of `rewind branch` and `rewind hindsight` at random moments: the parent keeps every byte, what was begun can be
read or is plainly none, and hindsight goes on where it was. # B3, B4, S0.4

A tenth of REWIND_KILLS of each (`make trust`); half a minute each, so none where that is not set.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import tracer
from tests.trust.test_kills import KILLS, ROOT, SEED, sealed, wait_for
from tracer import manifest, open_trace
from tracer.errors import NotATraceError

ROUNDS = max(1, KILLS // 10)
pytestmark = pytest.mark.skipif("REWIND_KILLS" not in os.environ, reason="half a minute each: `make trust` has them")
STEPS, AT = 60, 20
PROGRAM = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(30, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
data = torch.utils.data.TensorDataset(torch.randn(240, 30), torch.randn(240, 3))
for x, y in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
"""
METRIC = """
import time
def norm(step):
    time.sleep(0.002)
    return {"norm": step.model(step.batch[0]).norm()}
"""


def rewind(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "apps.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def killed(process: subprocess.Popen) -> None:
    """All of it: the engine and the sealer, too."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def done(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    return text


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    (folder / "train.py").write_text(PROGRAM)
    (folder / "metric.py").write_text(METRIC)
    done(rewind("record", "--out", folder / "t", "--detail", "replay", "--keyframe-every", 8, folder / "train.py"))
    with open_trace(folder / "t") as trace:
        assert trace.steps == STEPS
    return folder / "t"


def bytes_of(path) -> dict[str, str]:
    """What was recorded: all files but those that hindsight adds, and the index, which is made of the others."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.relative_to(path).parts[0] not in ADDED]
    return {str(p.relative_to(path)): hashlib.sha256(_recorded(p)).hexdigest() for p in files}


def _recorded(file) -> bytes:
    """The file's bytes; of trace.json, which also lists what was found out later, the facts without that."""
    if file.name != "trace.json":
        return file.read_bytes()
    return repr(replace(manifest.read(file.parent), addenda=())).encode()


ADDED = ("hindsight", "verdicts", "index.duckdb", "seal.lock")


@pytest.mark.parametrize("number", range(ROUNDS))
def test_whatever_kills_a_branch(parent, tmp_path, number):
    dice = random.Random(SEED * 1000 + number)
    before = bytes_of(parent)
    out = tmp_path / "branch"
    process = rewind("branch", parent, "--at", AT, "--set", "optimizer.lr=0.5x", "--out", out)
    began = (out / "trace.json").exists if number % 3 else out.exists
    wait_for(lambda: began() or process.poll() is not None, "the branch was never begun")
    time.sleep(dice.random() * 0.25)
    killed(process)
    assert bytes_of(parent) == before
    if not (out / "trace.json").exists():
        with pytest.raises(NotATraceError, match=r"no trace\.json"):
            open_trace(out)
        return
    with open_trace(out) as trace:
        runs = trace.recorded_steps.runs
        assert runs in ((), ((AT, trace.steps - 1),))
        for k in range(AT, trace.steps):
            assert trace.batch(k)[0].shape == (4, 30)
        assert [k for (k,) in trace.sql("select step from steps order by step").fetchall()] == list(range(trace.steps))
    sealed(out)
    with open_trace(out) as trace:
        assert trace.recorded_steps.runs == runs
        assert trace.status()["status"] != "running"


@pytest.fixture(scope="module")
def norms(parent, tmp_path_factory):
    """What hindsight says where nothing kills it."""
    whole = tmp_path_factory.mktemp("whole") / "t"
    shutil.copytree(parent, whole)
    done(rewind("hindsight", whole, f"{parent.parent / 'metric.py'}:norm"))
    return found(whole)


def found(path) -> list:
    with open_trace(path) as trace:
        query = "select step, value from metrics where source like 'hindsight:%' order by step"
        return np.array(trace.sql(query).fetchall()).tolist()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_whatever_kills_hindsight(parent, norms, tmp_path, number):
    dice = random.Random(SEED * 1000 + number)
    path = tmp_path / "t"
    shutil.copytree(parent, path)
    before = bytes_of(path)
    question = ("hindsight", path, f"{parent.parent / 'metric.py'}:norm")
    process = rewind(*question)
    wait_for(lambda: (path / "hindsight").exists() or process.poll() is not None, "it never began")
    time.sleep(dice.random() * 0.3)
    killed(process)
    assert bytes_of(path) == before
    half = found(path)
    assert half == [row for row in norms if row in half], "what is there is right"
    done(rewind(*question))
    assert found(path) == norms
    assert len(norms) == STEPS
    assert bytes_of(path) == before
    with tracer.open_trace(path) as trace:
        assert trace.damage() == []
