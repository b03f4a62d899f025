"""A live run, controlled from other processes: real processes, real sockets, real signals. # S4.1"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
import torch

import tracer
from tests.tracer.live_run import ENVIRONMENT, PROGRAM, LiveRun, undisturbed
from tracer import open_trace
from tracer.control import Control
from tracer.errors import ControlError, MissingDataError, NameUnknownError, UsageError

CYCLES = int(os.environ.get("REWIND_CYCLES", "100"))
"""Set it to 1000 to soak."""
HOLDER = """
import sys
import threading
from tracer.control import Control
control = Control(sys.argv[1])
control.pause(lease=True)
control.step()
"""


@pytest.mark.parametrize("mode", ["loader", "plain"])
def test_pause_change_resume_and_verify(mode, tmp_path):
    with LiveRun(tmp_path / "t", "--pause-at", "3", mode=mode) as run:
        assert run.until_status("paused")["current_step"] == 3
        with Control(run.path) as control, open_trace(run.path) as trace:
            state = control.state()
            assert (state["status"], state["step"], state["by_hand"]) == ("paused", 3, True)
            assert trace.recorded_steps.runs == ((0, 2),), "everything of the step is readable while paused"
            assert control.step()["step"] == 4
            assert control.step(3)["step"] == 7
            weights = control.peek("weights")
            trace.refresh()
            stored = trace.state(7)
            assert all(torch.equal(weights[name], stored[name]) for name in stored)
            with pytest.raises(NameUnknownError, match=r"optimizer\.lr"):
                control.set({"optimizer.rate": 1})
            with pytest.raises(UsageError, match="no value"):
                control.set({"optimizer.lr": "fast"})
            assert control.set({"optimizer.lr": "*0.5"})["changes"] == {"optimizer.lr": "*0.5"}
            assert control.step()["hyperparameters"]["optimizer.lr"] == 0.005
            control.set({"optimizer.betas": [0.5, 0.9]})
            control.resume()
            with pytest.raises(UsageError, match="not paused"):
                control.step()
        assert run.finish()[0] == 0
    with open_trace(run.path) as trace:
        rates = trace.sql("select step, lr from steps order by step").fetchall()
        assert rates == [(k, 0.01 if k < 7 else 0.005) for k in range(20)]
        events = trace.sql("select step, detail from events where kind = 'set' order by step").fetchall()
        assert [(k, json.loads(detail)) for k, detail in events] == [
            (7, {"optimizer.lr": "*0.5"}),
            (8, {"optimizer.betas": [0.5, 0.9]}),
        ]
        assert trace.record(7)["set"] == {"optimizer.lr": "*0.5"}
    # A replay makes the same changes: from the start, and from keyframes on either side of them.
    from replay import Session, verify

    assert verify(run.path).verified
    with Session(run.path) as session:
        for k in (12, 6, 7, 8):
            session.seek(k)
            assert session.step().kind == "verified", k
    with pytest.raises(ControlError, match="the run is finished"):
        Control(run.path)
    assert not list(run.path.glob("control*"))


def test_full_detail_of_the_paused_step_and_who_may_ask(tmp_path):
    options = ("--pause-at", "4", "--detail", "metrics", "--every", "10")
    with LiveRun(tmp_path / "t", *options) as run:
        run.until_status("paused")
        with Control(run.path) as control:
            keys = control.keys()
            assert [entry["name"] for entry in keys["captures"]] == ["layer/output"]
            grads = control.peek("grads")
            assert {name: tuple(g.shape) for name, g in grads.items()} == {
                entry["name"]: tuple(entry["shape"]) for entry in keys["weights"]
            }
            assert all(g.abs().sum() > 0 for g in grads.values())
            one = control.peek("captures", ["layer/output"])
            assert one["layer/output"].shape == (8,)
            assert control.peek("weights", ["0.bias"]).keys() == {"0.bias"}
            with pytest.raises(MissingDataError, match=r"there are: 0\.weight"):
                control.peek("weights", ["1.bias"])
            with pytest.raises(UsageError, match="none of weights"):
                control.peek("secrets")
            with pytest.raises(UsageError, match="no request"):
                control.request("fly")
        for name in ("control.json", "control.key"):
            assert stat.S_IMODE((run.path / name).stat().st_mode) == 0o600
        address = json.loads((run.path / "control.json").read_bytes())["address"]
        assert len(os.fsencode(address)) < 108
        assert stat.S_IMODE(os.stat(os.path.dirname(address)).st_mode) == 0o700
        with pytest.raises((AuthenticationError, OSError, EOFError)):
            Client(address, "AF_UNIX", authkey=b"guess")
        # A client that says nothing, or nonsense, hinders nobody.
        mute = Client(address, "AF_UNIX")
        with Control(run.path) as control:
            assert control.ping() < 5
            control.stop()
        mute.close()
        code, _, err = run.finish()
        assert code == 130
        assert "Traceback" not in err
    assert run.status()["status"] == "terminated"
    assert not os.path.exists(os.path.dirname(address))


@pytest.mark.parametrize("mode", ["loader", "plain"])
def test_the_batch_of_a_paused_step_is_what_it_was_fed(mode, tmp_path):  # S2 of a run that stores no batches
    with LiveRun(tmp_path / "kept", mode=mode) as run:
        assert run.finish()[0] == 0
    options = ("--pause-at", "4", "--detail", "metrics")
    with LiveRun(tmp_path / "t", *options, mode=mode) as run, open_trace(tmp_path / "kept") as kept:
        run.until_status("paused")
        with Control(run.path) as control:
            first = control.batch()
            assert len(first) == 2, "targets, too, in a loop without a loader"
            assert all(torch.equal(a, b) for a, b in zip(first, kept.batch(3), strict=True))
            control.step(2)
            assert [e["shape"] for e in control.keys()["batch"]] == [[4, 6], [4, 2]]
            assert all(torch.equal(a, b) for a, b in zip(control.batch(), kept.batch(5), strict=True))
        with open_trace(run.path) as trace, pytest.raises(MissingDataError, match="not recorded"):
            trace.batch(5)


@pytest.mark.parametrize(("detail", "at"), [("metrics", 4), ("metrics", None), ("replay", None)])
def test_the_first_pause_holds_all_of_its_step(detail, at, tmp_path):  # S4.1
    """Of a loop that draws its batches itself, however the pause came about: nothing had to be known beforehand."""
    options = () if at is None else ("--pause-at", str(at))
    with LiveRun(tmp_path / "t", "--detail", detail, *options, mode="plain", epochs=10_000) as run:
        run.until(lambda: run.status()["current_step"])
        if at is not None:
            run.until_status("paused")
        with Control(run.path) as control, open_trace(run.path) as trace:
            k = (control.pause() if at is None else control.state())["step"] - 1
            assert at is None or k == at - 1
            trace.refresh()
            before, after, grads, batch = made_again(k)
            if not trace.has_state(k):
                assert equal(control.peek("before"), before)
            assert equal(control.peek("weights"), after)
            assert equal(control.peek("grads"), grads)
            found = trace.batch(k) if detail == "replay" else control.batch()
            assert all(torch.equal(a, b) for a, b in zip(found, batch, strict=True))
            assert torch.equal(control.peek("captures")["layer/output"], before["0.bias"])


def made_again(k):
    """What step `k` of the plain loop started from, made, had as gradients and was fed."""
    code = PROGRAM.split("def main")[0].replace("sys.argv[1], int(sys.argv[2]), int(sys.argv[3])", "'plain', 1, 10")
    space = {}
    exec(code, space)
    model = space["model"]
    for _ in range(k + 1):
        before = {name: t.detach().clone() for name, t in model.state_dict().items()}
        ids = torch.randint(0, len(space["x"]), (4,))
        batch = space["x"][ids], space["y"][ids]
        space["one"](*batch)
    return before, dict(model.state_dict()), {name: p.grad for name, p in model.named_parameters()}, batch


def equal(found, stored):
    return found.keys() == stored.keys() and all(torch.equal(found[name], stored[name]) for name in stored)


def test_cycles_from_three_clients_change_nothing(tmp_path):
    run_length = {"epochs": 4, "batches": 5 * CYCLES}
    with LiveRun(tmp_path / "t", "--pause-at", "5", "--no-weights", **run_length) as run:
        run.until_status("paused")

        def client(number: int) -> int:
            made = 0
            with Control(run.path) as control:
                for cycle in range(CYCLES // 3 + 1):
                    control.pause()
                    try:
                        control.step(1 + (cycle + number) % 3)
                        made += 1
                    except UsageError:  # another client has just resumed it
                        pass
                    control.resume()
            return made

        with ThreadPoolExecutor(3) as pool:
            assert sum(pool.map(client, range(3))) > 0
        code, out, _ = run.finish()
        assert code == 0
    assert out == undisturbed(tmp_path, *run.arguments)
    with open_trace(run.path) as trace:
        assert trace.recorded_steps.runs == ((0, 20 * CYCLES - 1),)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signals_while_paused(number, tmp_path):
    with LiveRun(tmp_path / "t", "--pause-at", "4") as run:
        run.until_status("paused")
        if number == signal.SIGINT:
            # A client that holds the run by lease dies: it was paused by hand, too, and stays so.
            subprocess.run([sys.executable, "-c", HOLDER, str(run.path)], env=ENVIRONMENT, check=True)
            with Control(run.path) as control:
                assert control.state()["status"] == "paused"
        run.process.send_signal(number)
        code, _, err = run.finish()
        assert "Traceback" not in err
        assert "rewind resume" in err
        assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
        status = run.status()["status"]
        assert status == ("terminated" if number == signal.SIGINT else "crashed")
        with pytest.raises(ControlError, match=status):
            Control(run.path)
    with open_trace(run.path) as trace:
        assert trace.steps == (5 if number == signal.SIGINT else 4)


def test_run_goes_on_when_its_holder_dies(tmp_path):
    with LiveRun(tmp_path / "t", epochs=50, batches=1000) as run:
        run.until_status("running")
        with Control(run.path) as control:
            assert control.pause(lease=True)["status"] == "paused"
        run.until_status("running")
        with Control(run.path) as control:
            control.stop()
        code, _, err = run.finish()
    assert code == 130
    assert "the client that had paused the run is gone" in err


def test_from_code(tmp_path):
    """The loop asks for a pause itself; another thread of the process lets it go on, step by step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []

    def steer(recorder):
        gate = recorder.live.gate
        while gate.status != "paused":
            assert helper.is_alive()
        seen.append(gate.step)
        recorder.grant(2)
        gate.settle(30)
        seen.append(gate.step)
        recorder.live.set({"optimizer.lr": 0.5})
        recorder.resume()

    with tracer.record(tmp_path / "t") as recorder:
        helper = threading.Thread(target=steer, args=(recorder,), daemon=True)
        helper.start()
        for k, (x,) in enumerate(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(10, 2)))):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            if k == 3:
                recorder.pause()
        helper.join(30)
    assert seen == [4, 6]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
    with open_trace(tmp_path / "t") as trace:
        rates = [rate for (rate,) in trace.sql("select lr from steps order by step").fetchall()]
    assert rates == [0.1] * 6 + [0.5] * 4
