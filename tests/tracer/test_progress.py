"""Progress of a run: from its own loops, from what it says, and as other processes see it. # S3"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace

import pytest
import torch

import tracer
from tests.tracer.live_run import LiveRun
from tracer import live, open_trace
from tracer.manifest import SessionFacts, read
from tracer.process import started
from tracer.progress import FIELDS, STALE_SECONDS, Counts, Progress
from tracer.progress import read as read_progress

NAMES = [
    "status",
    "current_step",
    "total_steps",
    "batch_step",
    "batch_total_steps",
    "batch_number",
    "batch_queue_size",
    "current_file",
    "epoch",
    "loss",
    "learning_rate",
    "steps_per_second",
    "eta_seconds",
    "updated_at",
]


@pytest.fixture
def clock(monkeypatch):
    """The clock of status.json, which is due at every step that moves it by 0.5 s."""
    clock = _Clock()
    monkeypatch.setattr(live, "Progress", lambda path, errands: Progress(path, clock=clock))
    return clock


class _Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _parts(batches=5, size=2):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(torch.randn(batches * size, 3), torch.randn(batches * size, 2))

    def one(x, y):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return torch.utils.data.DataLoader(data, batch_size=size), one


def _status(path):
    return read_progress(path, read(path).sessions)


def test_fields_are_exactly_these(tmp_path):  # S3.1
    loader, one = _parts()
    with tracer.record(tmp_path / "t"):
        for x, y in loader:
            one(x, y)
    written = json.loads((tmp_path / "t" / "status.json").read_bytes())
    assert list(written) == NAMES == list(FIELDS)
    with open_trace(tmp_path / "t") as trace:
        facts = trace.status()
    assert list(facts) == NAMES
    assert (facts["status"], facts["current_step"]) == ("finished", 5)
    assert (facts["batch_step"], facts["batch_total_steps"], facts["learning_rate"]) == (5, 5, 0.1)
    assert facts["current_file"] is None
    assert time.time() - facts["updated_at"] < 60


WRAPPERS = {
    "plain": lambda loader: loader,
    "enumerate": lambda loader: (batch for _, batch in enumerate(loader)),
    "zip": lambda loader: (batch for batch, _ in zip(loader, range(100), strict=False)),
    "generator": lambda loader: (batch for batch in loader),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_totals_from_loader_and_enclosing_loop(wrap, tmp_path, clock):
    loader, one = _parts()
    seen = []

    def epoch_of(number):
        for x, y in WRAPPERS[wrap](loader):
            clock.now += 0.5
            one(x, y)
            if (tmp_path / "t" / "status.json").exists():
                seen.append(_status(tmp_path / "t"))

    with tracer.record(tmp_path / "t"):
        for epoch in range(3):
            epoch_of(epoch)
    assert [facts["current_step"] for facts in seen] == list(range(1, 15))
    assert {facts["total_steps"] for facts in seen} == {15}
    assert {facts["batch_total_steps"] for facts in seen} == {5}
    assert [facts["batch_step"] for facts in seen[:6]] == [1, 2, 3, 4, 5, 1]
    assert seen[8]["steps_per_second"] == pytest.approx(2.0)
    assert seen[8]["eta_seconds"] == pytest.approx((15 - 9) / 2)


def test_totals_without_loader(tmp_path, clock):
    _, one = _parts()
    seen = []
    with tracer.record(tmp_path / "t"):
        for _ in range(2):
            for _ in range(6):
                for _ in range(2):  # no step of its own: it only prepares
                    x, y = torch.randn(2, 3), torch.randn(2, 2)
                clock.now += 0.5
                one(x, y)
                if (tmp_path / "t" / "status.json").exists():
                    seen.append(_status(tmp_path / "t"))
    known = [facts["total_steps"] for facts in seen if facts["total_steps"] is not None]
    assert len(known) >= 9
    assert set(known) == {12}
    assert seen[-1]["batch_total_steps"] is None


def test_a_resumed_run_counts_from_its_checkpoint(tmp_path):  # S3.1: resumed at 119, 89 steps in: 208
    loader, one = _parts(batches=118)
    with tracer.record(tmp_path / "said"):
        tracer.progress(current_step=119, total_steps=237, batch_number=3, batch_queue_size=7, current_file="a.csv")
        for k, (x, y) in enumerate(loader):
            one(x, y)
            if k == 88:
                break
    facts = _status(tmp_path / "said")
    assert (facts["current_step"], facts["total_steps"]) == (208, 237)
    assert (facts["batch_number"], facts["batch_queue_size"], facts["current_file"]) == (3, 7, "a.csv")
    loader, one = _parts(batches=118)
    with tracer.record(tmp_path / "at", at=119):
        for k, (x, y) in enumerate(loader):
            one(x, y)
            if k == 88:
                break
    assert _status(tmp_path / "at")["current_step"] == 208


def test_unknown_fields_are_told_of_and_left(tmp_path, caplog):  # S3.2
    progress = Progress(tmp_path)
    progress.given({"total_stepz": 3, "total_steps": 5}, 0)
    progress.write("running")
    assert "total_stepz" in caplog.text
    assert progress.facts["total_steps"] == 5
    assert list(json.loads((tmp_path / "status.json").read_bytes())) == NAMES


def test_nan_is_kept_and_the_file_is_json(tmp_path):  # S1.2
    progress = Progress(tmp_path)
    header = {"step": 0, "mode": "loader", "batch_index": 0, "epoch": 0, "loss": math.nan, "lr": math.inf}
    progress.stepped(header, lambda: None)
    json.loads((tmp_path / "status.json").read_bytes(), parse_constant=pytest.fail)
    facts = read_progress(tmp_path, ())
    assert math.isnan(facts["loss"])
    assert facts["learning_rate"] == math.inf


def test_at_most_two_writes_a_second(tmp_path, monkeypatch):
    writes = []
    now = [0.0]
    progress = Progress(tmp_path, clock=lambda: now[0])
    monkeypatch.setattr(progress, "write", writes.append)
    driver = []
    for step in range(1000):
        now[0] = step / 100
        progress.stepped({"step": step, "mode": "loader", "batch_index": step}, lambda: driver)
    assert len(writes) == 20


def test_a_disk_that_refuses_is_told_of_once(tmp_path, caplog):
    progress = Progress(tmp_path / "gone")
    progress.write("running")
    progress.write("running")
    assert caplog.text.count("cannot write") == 1


def test_status_of_another_machine_and_of_the_dead(tmp_path):  # S2.1
    Progress(tmp_path).write("paused")
    here = SessionFacts(0, time.time(), 0, 0, os.uname().nodename, os.getpid(), started(os.getpid()))
    assert read_progress(tmp_path, (here,))["status"] == "paused"
    assert read_progress(tmp_path, (replace(here, pid_started=1.0),))["status"] == "crashed"
    assert read_progress(tmp_path, (replace(here, status="failed"),))["status"] == "failed"
    away = replace(here, host="elsewhere", pid_started=1.0)
    assert read_progress(tmp_path, (away,))["status"] == "paused"
    facts = json.loads((tmp_path / "status.json").read_bytes())
    facts["updated_at"] -= STALE_SECONDS + 1
    (tmp_path / "status.json").write_text(json.dumps(facts))
    assert read_progress(tmp_path, (away,))["status"] == "crashed"
    assert read_progress(tmp_path, (here,))["status"] == "paused"


def test_no_loop_no_total():
    assert Counts().steps_left([], None, 5, (None, None)) is None
    assert Counts().steps_left([], object(), 5, (1, 10)) is None


def test_every_keeps_six_of_fifty(tmp_path, caplog):  # S0.1 S0.3
    loader, one = _parts(batches=50)
    with caplog.at_level("INFO", "rewind"), tracer.record(tmp_path / "t", every=10):
        for _ in range(2):
            for x, y in loader:
                one(x, y)
    with open_trace(tmp_path / "t") as trace:
        kept = trace.sql("select epoch, batch_index + 1 from steps order by step").fetchall()
        assert kept == [(e, b) for e in (0, 1) for b in (1, 10, 20, 30, 40, 50)]
        counts = trace.sql("select offered, kept, written, dropped from epochs order by epoch").fetchall()
        assert counts == [(50, 6, 6, 0)] * 2
        assert len(trace.recorded_steps) == 100
    assert caplog.text.count("offered 50, kept 6, wrote 6, dropped 0") == 2


def test_a_reader_sees_each_step_in_time(tmp_path):  # S0.2: within 2 s, each of them, and no point twice: S2.2
    with LiveRun(tmp_path / "t", epochs=2, batches=600) as run:
        run.until_status("running")
        seen: list[int] = []
        begun, looks, worst = -math.inf, 0, 0.0
        with open_trace(run.path) as trace:
            while run.process.poll() is None:
                before, begun = begun, time.time()
                rows = trace.sql(f"select step, time from steps where step > {len(seen) - 1}").fetchall()
                # What this look found first, the look before it had not: how long had it been there by then?
                worst = max([worst, *(before - when for _, when in rows)])
                seen += [k for k, _ in rows]
                looks += bool(rows)
        run.finish()
    assert sorted(seen) == list(range(len(seen)))
    assert looks > 3
    assert worst < 2.0


def test_a_hammering_reader_while_sealing(tmp_path):  # S2.2
    """Segments of 32 steps are sealed all the time; every look is whole: no step torn, twice, or missing."""
    environment_roll = "import tracer.journal as j; j.ROLL_STEPS = 32"
    script = tmp_path / "sealing.py"
    from tests.tracer.live_run import PROGRAM

    script.write_text(f"{environment_roll}\n{PROGRAM}")
    with LiveRun(tmp_path / "t", epochs=1, batches=700, script=script) as run:
        run.until_status("running")
        looks, last = 0, 0
        while run.process.poll() is None:
            with open_trace(run.path) as trace:
                runs = trace.recorded_steps.runs
                assert len(runs) <= 1, f"steps are missing in {runs}"
                steps = trace.steps
                assert steps >= last
                count = trace.sql(
                    "select count(*), count(distinct step), coalesce(max(step), -1) from steps"
                ).fetchall()
                ((rows, distinct, top),) = count
                assert rows == distinct == top + 1 >= steps
                if steps:
                    trace.state(steps - 1)
                looks, last = looks + 1, steps
        run.finish()
    assert looks > 10
    assert len(list((run.path / "metrics").glob("*.json"))) > 10
    with open_trace(run.path) as trace:
        assert trace.recorded_steps.runs == ((0, 699),)
