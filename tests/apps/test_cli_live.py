"""Verbs, doctor and JSON API on a run that goes on: one real run, watched and steered from this process."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from apps.cli import run
from apps.doctor_live import live_findings
from apps.runs import Runs
from apps.viewer import Viewer
from tests.apps.test_api import Api
from tests.tracer.live_run import LiveRun
from tests.tracer.synthetic import make_trace
from tracer import manifest, open_trace
from tracer.control import Control
from tracer.progress import FIELDS


def said(capfd, *args) -> tuple[int, str, str]:
    code = run([str(arg) for arg in args])
    return code, *capfd.readouterr()


def kinds(path) -> list[str]:
    with open_trace(path) as trace:
        return [finding.kind for finding in live_findings(trace)]


def test_verbs_api_and_doctor_on_one_run(tmp_path, capfd):  # S3.3 S4.1 S4.8 S0.5
    path = tmp_path / "t"
    with LiveRun(path, "--pause-at", "3", epochs=100, batches=100) as live:
        live.until_status("paused")
        code, out, _ = said(capfd, "status", path, "--json")
        facts = json.loads(out)
        assert code == 0
        assert list(facts) == list(FIELDS)
        assert (facts["status"], facts["current_step"], facts["total_steps"]) == ("paused", 3, 10_000)
        assert kinds(path) == ["paused"]
        assert said(capfd, "step", path)[:2] == (0, "paused, before step 4\n")
        assert said(capfd, "step", path, "3")[:2] == (0, "paused, before step 7\n")
        code, out, _ = said(capfd, "set", path, "optimizer.lr=0.5x", "--json")
        assert json.loads(out)["changes"] == {"optimizer.lr": "0.5x"}
        for wrong in (["optimizer.rate=1"], ["optimizer.lr"], ["optimizer.lr=quick"]):
            code, out, err = said(capfd, "set", path, *wrong)
            assert (code, out, err.count("\n")) == (2, "", 1)
        api = Api(path)
        status, state = api.get("state")
        assert (status, state["mode"], state["status"], state["paused"]) == (200, "live", "paused", True)
        status, state = api.post("step", {"steps": 2})
        assert (status, state["step"], state["live"]["step"]) == (200, 8, 9)
        assert state["scalars"]["loss"] > 0
        assert api.post("step", {"steps": 0})[0] == 409
        assert api.post("resume")[0] == 200
        assert api.post("step")[0] == 409
        code, out, err = said(capfd, "step", path)
        assert (code, out) == (2, "")
        assert "pause it first" in err
        live.until_status("running")
        assert kinds(path) == []
        # Paused by the app's lease alone, the run goes on when the app is gone.
        assert api.post("pause")[1]["live"]["status"] == "paused"
        live.until_status("paused")
        api.runs.close()
        live.until_status("running")
        api.close()
        assert said(capfd, "pause", path)[1].startswith("paused, before step")
        assert said(capfd, "stop", path)[0] == 0
        assert live.finish()[0] == 130
    code, out, _ = said(capfd, "status", path, "--follow")
    assert code == 0
    assert out.startswith("terminated step ")
    code, out, err = said(capfd, "pause", path)
    assert (code, out) == (2, "")
    assert "the run is terminated" in err
    assert kinds(path) == []


def test_a_disk_that_refuses_is_said_while_it_does(tmp_path, capfd):  # S0.4
    path = tmp_path / "t"
    with LiveRun(path, epochs=1000, batches=100) as live:
        live.until_status("running")
        _, most = resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE, (0, most))
        with Control(path) as control:
            refused = live.until(lambda: control.state()["refused"])
        assert "File too large" in refused
        code, out, err = said(capfd, "status", path)
        assert (code, out.split()[:2]) == (0, ["status", "running"])
        assert f"rewind: refused, steps are being lost: {refused}\n" in err
        viewer = Viewer(Runs([path]))
        viewer.following.ready()
        viewer.following.pulse._grew -= 10
        viewer.following._pilot._told(control_state(path))
        assert viewer.following.strip_frame()["refused"].endswith(refused)
        resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE, (most, most))
        live.until(lambda: control_state(path)["refused"] is None)
        assert "refused" not in said(capfd, "status", path)[2]
        viewer.close()


def control_state(path):
    with Control(path) as control:
        return control.state()


def test_doctor_names_the_dead_and_the_deaf(tmp_path, capfd):
    path = tmp_path / "t"
    with LiveRun(path, epochs=100, batches=100) as live:
        live.until_status("running")
        (path / "control.json").unlink()
        assert kinds(path) == ["control"]
        live.process.send_signal(signal.SIGKILL)
        live.process.wait()
        killed = time.monotonic()
        assert said(capfd, "status", path)[1].split()[:2] == ["status", "crashed"]
        assert time.monotonic() - killed < 5
    assert kinds(path) == ["process"]
    code, out, _ = said(capfd, "doctor", path)
    assert code == 1
    assert out.startswith("process, the whole run: the process")
    assert "rewind repair" in out


def _running(path, **changes):
    """A trace of synthetic steps, said to be written by this process."""
    facts = manifest.read(path)
    session = replace(facts.sessions[-1], status="running", host=os.uname().nodename, pid=os.getpid(), pid_started=0.0)
    replace(facts, sessions=(*facts.sessions[:-1], replace(session, **changes))).write(path)


@pytest.mark.parametrize(
    ("ago", "expected"), [(3600.0, "silence"), (-3600.0, "control"), (0.0, "control")], ids=["old", "ahead", "now"]
)
def test_doctor_on_times(ago, expected, tmp_path, monkeypatch):
    make_trace(tmp_path / "t", steps=10, features=4, inputs=6, seal=False)
    _running(tmp_path / "t")
    with open_trace(tmp_path / "t") as trace:
        ((newest,),) = trace.sql("select max(time) from steps").fetchall()
    monkeypatch.setattr("apps.doctor_live.time.time", lambda: newest + ago)
    assert kinds(tmp_path / "t") == [expected]


def test_doctor_says_that_the_store_stands_still(tmp_path, monkeypatch):
    make_trace(tmp_path / "t", steps=10, features=4, inputs=6, seal=False)
    _running(tmp_path / "t")
    with open_trace(tmp_path / "t") as trace:
        ((newest,),) = trace.sql("select max(time) from steps").fetchall()
    monkeypatch.setattr("apps.doctor_live.time.time", lambda: newest + 120)
    facts = dict.fromkeys(FIELDS) | {"status": "running", "current_step": 500, "updated_at": newest + 119}
    (tmp_path / "t" / "status.json").write_text(json.dumps(facts))
    assert kinds(tmp_path / "t") == ["store"]


@pytest.mark.parametrize("detail", ["metrics", "replay"])
def test_peek_says_and_writes_what_a_paused_step_holds(detail, tmp_path, capfd):  # S4.1
    path, target = tmp_path / "t", tmp_path / "batch.npz"
    with LiveRun(path, "--detail", detail, "--pause-at", "3") as live:
        live.until_status("paused")
        code, out, _ = said(capfd, "peek", path, "--json")
        rows = json.loads(out)
        assert code == 0
        assert {"what": "batch", "name": "0", "dtype": "float32", "shape": [4, 6]} in rows
        assert {row["what"] for row in rows} >= {"batch", "weights", "grads", "captures"}
        assert said(capfd, "peek", path, "batch", "-o", target)[0] == 0
        with np.load(target) as arrays:
            assert {name: a.shape for name, a in arrays.items()} == {"0": (4, 6), "1": (4, 2)}
        for wrong in (["-o", target], ["grads", "-o", tmp_path]):
            code, out, err = said(capfd, "peek", path, *wrong)
            assert (code, out, err.count("\n")) == (2, "", 1)
