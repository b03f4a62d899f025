"""The live side of a page without a browser: what it takes in, what it holds, where its server is found again."""

from __future__ import annotations

import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from apps import address, doctor_live
from apps.pulse import Pulse, refusal
from apps.recorded import Recorded
from apps.runs import Runs
from apps.viewer import Viewer
from tests.apps.test_cli_live import _running, kinds
from tests.tracer.live_run import LiveRun
from tests.tracer.synthetic import make_trace
from tracer import open_trace
from tracer.control import Control
from tracer.errors import MissingDataError


def beating(viewer, condition):
    """Let the page beat until `condition()`."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        viewer.following.beat()
        viewer.following.painted(viewer.following._pushes)
        time.sleep(0.02)


def test_who_went_along_sees_the_last_step_however_late_it_comes_to_light(tmp_path, monkeypatch):  # S2.2
    path = tmp_path / "t"
    with LiveRun(path, epochs=1000, batches=100) as live:
        live.until_status("running")
        viewer = Viewer(Runs([path]))
        viewer.following.ready()
        assert viewer.following.on, "and the run may be over before the page's first beat"
        status = viewer.run.trace.status()
        monkeypatch.setattr(type(viewer.run.trace), "status", lambda trace: {**status, "status": "finished"})
        beating(viewer, lambda: not viewer.following.pulse.live)
        beating(viewer, lambda: not viewer.following.on)
        for _ in range(2):
            at = viewer.run.last
            beating(viewer, lambda at=at: viewer.following.pulse.look(now=True) or viewer.selection.step > at)
        viewer.choose(step=1)
        at = viewer.run.last
        beating(viewer, lambda: viewer.following.pulse.look(now=True) or viewer.run.last > at)
        viewer.following.beat()
        assert viewer.selection.step == 1, "who turned back stays there"
        viewer.close()


def test_a_page_holds_steps_and_lets_go_of_a_run_of_little_detail(tmp_path):  # S4.1
    path = tmp_path / "t"
    with LiveRun(path, "--detail", "metrics", "--pause-at", "3", epochs=1000, batches=100) as live:
        live.until_status("paused")
        runs = Runs([path])
        viewer = Viewer(runs)
        viewer.following.ready()
        run, page = viewer.run, viewer.following
        assert (page.on, viewer.selection.step) == (True, 2)
        assert not run.trace.has_state(3)
        beating(viewer, lambda: 3 in run._again)
        with Control(path) as control:
            weights, grads = control.peek("weights"), control.peek("grads")
        assert np.array_equal(run.weight("0.weight", 3), weights["0.weight"].double().numpy())
        assert set(run._grads(2)) == set(grads)
        assert run.capture("layer/output", 2).shape == (8,)
        assert run.batch(2).text.startswith("0: float32 [4, 6]")
        with pytest.raises(MissingDataError, match="batch"):
            run.batch(1)
        page.heard({"do": "advance", "steps": 2})
        beating(viewer, lambda: run.last == 4 and page._pilot.state.get("status") == "paused")
        beating(viewer, lambda: viewer.selection.step == 4 and 5 in run._again)
        moved = run.weight("0.weight", 5) - run.weight("0.weight", 3)
        assert np.abs(moved).max() > 0
        page.heard({"do": "set", "name": "optimizer.rate", "value": 1})
        beating(viewer, lambda: "optimizer.lr" in page._pilot.problem)
        page.heard({"do": "resume"})
        live.until_status("running")
        page.heard({"do": "pause"})
        live.until_status("paused")
        other = Viewer(runs)
        viewer.close()
        assert not page._pilot.state["by_hand"]
        other.following.heard({"do": "set", "name": "optimizer.lr", "value": 0.5})
        beating(other, lambda: other.following._pilot.state.get("changes") == {"optimizer.lr": 0.5})
        assert live.status()["status"] == "paused", "another page shows it still"
        other.close()
        live.until_status("running")
        runs.close()


def test_the_pulse_reads_anew_no_oftener_than_it_may(tmp_path):  # S2.4
    make_trace(tmp_path / "t", steps=5, features=4, inputs=6, seal=False)
    now = [100.0]
    pulse = Pulse(Recorded(open_trace(tmp_path / "t")), redraw=10.0, clock=lambda: now[0])
    pulse.look()
    pulse.renew()
    assert (pulse.status, pulse.live, pulse.generation) == ("finished", False, 0)
    assert pulse.run.last == 4
    pulse.facts = {"status": "running"}
    pulse.renew()
    assert pulse.generation == 1, "another status is shown at once"
    pulse.renew()
    pulse.run.trace._chain.end += 1
    pulse.renew()
    assert pulse.generation == 1
    now[0] += 11
    pulse.renew()
    assert pulse.generation == 2


def test_what_cannot_be_read_is_said_and_not_raised(tmp_path):
    make_trace(tmp_path / "t", steps=5, features=4, inputs=6, seal=False)
    pulse = Pulse(Recorded(open_trace(tmp_path / "t")))
    (tmp_path / "t" / "trace.json").rename(tmp_path / "t" / "gone")
    pulse.look()
    assert (pulse.status, pulse.live) == ("broken", False)
    assert str(tmp_path) in pulse.problem
    (tmp_path / "t" / "gone").rename(tmp_path / "t" / "trace.json")
    pulse.look(now=True)
    assert pulse.status == "finished"
    assert refusal(tmp_path / "t") == ""
    assert "is gone" in refusal(tmp_path)


def test_steps_that_do_not_arrive_are_said_with_their_cause(tmp_path):  # S0.4
    path = tmp_path / "t"
    make_trace(path, steps=5, features=4, inputs=6, seal=False)
    _running(path)
    viewer = Viewer(Runs([path]))
    page = viewer.following
    page.pulse.look(now=True)
    assert page.strip_frame()["refused"] == ""
    page.pulse._grew -= 10
    page._pilot.state = {"status": "running", "step": 50}
    assert page.strip_frame()["refused"].startswith("the run is at step 49, the trace has none after 4: ")
    (path / "tail").rename(path / "taken")
    assert page.strip_frame()["refused"].endswith("tail is gone")
    page._pilot.state = {"status": "running", "step": 5}
    assert page.strip_frame()["refused"] == "", "a long step is no refusal"
    viewer.close()


class Answering(BaseHTTPRequestHandler):
    def do_GET(self):
        nonce = parse_qs(urlsplit(self.path).query)["nonce"][0]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(address.answer(self.server.proof, nonce).encode())

    def log_message(self, *_):
        pass


def test_an_app_is_found_where_it_was_and_the_doctor_asks_it(tmp_path, monkeypatch):  # S0.5
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    traces = [tmp_path / "runs"]
    path = traces[0] / "t"
    make_trace(path, steps=5, features=4, inputs=6, seal=False)
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.proof = address.proof("the token")
        port = server.server_address[1]
        own = address.remember(traces, "127.0.0.1", port, "the token")
        assert own.answers()
        assert address.recall(traces, "127.0.0.1", 0) is None, "it is there, and has its port"
        server.proof = address.proof("another")
        assert not own.answers(), "another program has its port"
        server.shutdown()
    assert [app.shows(path) for app in address.known()] == [True]
    assert not own.shows(tmp_path)
    file = next(Path(tmp_path / "state").rglob("*.json"))
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(doctor_live, "_goes_on", lambda trace: True)
    monkeypatch.setattr(doctor_live, "_LINKS", (doctor_live._server,))
    assert kinds(path) == ["server"]
    address.ended(own)
    assert kinds(path) == []
    found = address.recall(traces, "127.0.0.1", 0)
    assert (found.port, found.token) == (port, "the token")
    assert address.recall(traces, "127.0.0.1", port + 1) is None
    file.chmod(0o644)
    assert address.recall(traces, "127.0.0.1", 0) is None, "others could have read the token"
    file.chmod(0o600)
    address._write(file, address.Address("127.0.0.1", port, "x", own.traces, 2**22 + 17, 5.0, time.time()))
    with open_trace(path) as trace:
        (finding,) = doctor_live.live_findings(trace)
    assert "is gone" in finding.evidence


def _worked_out(viewer):
    """What the page's thread has been given to do is done."""
    if viewer._worker is not None:
        viewer._worker.submit(int).result()


def _sources(view, tab):
    if tab in ("forces", "matrices"):
        return [view._line._source]
    return [line.source for line in view._lines] if tab == "metrics" else list(view._lines.values())


@pytest.mark.parametrize("tab", ["metrics", "trajectories", "forces", "matrices"])
def test_charts_grow_in_place(tab, tmp_path):  # S2.1
    path = tmp_path / "t"
    make_trace(path, steps=40, features=8, inputs=64, seal=False, close=False)
    short = tmp_path / "short"
    shutil.copytree(path, short)
    tail = next((short / "tail").iterdir())
    whole = tail.read_bytes()
    tail.write_bytes(whole[: len(whole) // 2])
    viewer = Viewer(Runs([short]), f"tab={tab}")
    viewer.following.ready()
    viewer.show()
    view = viewer._views[tab]
    _worked_out(viewer)
    lines = _sources(view, tab)
    name = "step" if tab == "metrics" else "x"
    before = viewer.run.last
    assert 5 < before < 39
    assert list(lines[0].data[name]) == list(range(before + 1))
    tail.write_bytes(whole)
    viewer.following.pulse.look(now=True)
    viewer.following.pulse.renew(now=True)
    viewer.redraw()
    _worked_out(viewer)
    after = _sources(view, tab)
    assert all(a is b for a, b in zip(lines, after, strict=True)), "nothing is drawn anew"
    assert list(lines[0].data[name]) == list(range(40))
    viewer.close()
