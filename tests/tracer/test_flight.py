"""The flight recorder (B7): the last steps in full where something happened, scalars elsewhere."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer
from tracer.condition import parse
from tracer.errors import MissingDataError, UsageError
from tracer.flight import Flight, light
from tracer.manifest import Program
from tracer.options import Options
from tracer.recorder import Recorder

pytestmark = pytest.mark.usefixtures("module_unsealed")


def train(*, spike=None, crash=None, call=None):
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(64, 6), torch.randn(64, 2)), batch_size=4, shuffle=True)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = 0
    for _ in range(3):
        for x, y in loader:
            loss = (model(x) - y).square().mean() * (100 if step == spike else 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tracer.capture("layer/mean", model.weight.mean(dim=1))
            tracer.capture("layer/whole", model.weight)
            if step == crash:
                raise RuntimeError("enough")
            if step == 30 and call is not None:
                call()
            step += 1


def record(path, flight, **options):
    recorder = Recorder(path, options=Options(flight=flight), program=Program("block"))
    with recorder:
        train(**options)
    return tracer.open_trace(path)


def full(trace):
    return [k for k in range(trace.steps) if trace.record(k).get("batch") is not None]


def test_record_takes_it_as_options(tmp_path):
    with tracer.record(tmp_path / "t", last=5, when="mean(whole) > 1e9 or loss > 5 * median(loss, 100)"):
        train(spike=40)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert full(trace) == [36, 37, 38, 39, 40]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"when": "loss > 1"}, "how many"),
        ({"last": 0}, "at least"),
        ({"last": 5, "detail": "full"}, "detail"),
        ({"last": 5, "when": "loss >"}, "condition"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        tracer.record(tmp_path / "t", **options)
    assert not (tmp_path / "t").exists()


def test_without_a_moment_there_are_scalars_alone(tmp_path):
    with record(tmp_path / "t", Flight(6, parse("isnan(loss)"))) as trace:
        assert trace.steps == 48
        assert full(trace) == []
        assert trace.sql("select count(loss), count(grad_norm) from steps").fetchall() == [(48, 48)]
        assert len(trace.captures["layer/mean"].steps) == 48
        assert "layer/whole" not in trace.captures
        with pytest.raises(MissingDataError):
            trace.grads(20)


def test_a_condition_writes_the_last_steps_in_full(tmp_path):
    with record(tmp_path / "t", Flight(6, parse("loss > 5 * median(loss, 100)")), spike=29) as trace:
        assert full(trace) == [24, 25, 26, 27, 28, 29]
        assert trace.captures["layer/whole"].steps.tolist() == full(trace)
        assert trace.grads(29)["weight"].shape == (2, 6)
        assert trace.has_state(30)
        assert any(k in range(23, 30) for k in trace.keyframes)
        events = trace.sql("select step, detail from events where kind = 'flight'").fetchall()
        assert [step for step, _ in events] == [29]
        assert "5 * median" in events[0][1]


def test_what_was_written_can_be_replayed(tmp_path):
    from replay import verify

    def program():
        train(spike=29)

    recorder = Recorder(
        tmp_path / "t",
        options=Options(flight=Flight(6, parse("loss > 5 * median(loss, 20)"))),
        program=Program("block"),
    )
    with recorder:
        program()
    with tracer.open_trace(tmp_path / "t") as trace:
        first = min(trace.keyframes)
        assert first in full(trace)
        report = verify(trace, (first, 30), program=program)
    assert report.verified


def test_an_exception_writes_them(tmp_path):
    with pytest.raises(RuntimeError, match="enough"):
        record(tmp_path / "t", Flight(4), crash=20)
    with tracer.open_trace(tmp_path / "t") as trace:
        # The step that the exception cut short waits with them, and is an event of its own.
        assert full(trace) == [17, 18, 19]


def test_a_signal_writes_them(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    with record(tmp_path / "t", Flight(4), call=lambda: os.kill(os.getpid(), signal.SIGUSR1)) as trace:
        assert full(trace)[-1] in (30, 31)
        assert len(full(trace)) == 4
    assert signal.getsignal(signal.SIGUSR1) is before


def test_light_records_keep_scalars_and_vectors():
    header = {"step": 1, "loss": 2.0, "batch": {}, "extras": [], "captures": [{"shape": [2, 2]}, {"shape": [3]}]}
    slim, sections = light(header, [("capture0", [b"a"], "x"), ("capture1", [b"b"], "y"), ("weights", [b"w"], None)])
    assert slim["captures"] == [{"shape": [3]}]
    assert sections == [("capture0", [b"b"], "y")]
    assert (slim["batch"], slim["loss"]) == (None, 2.0)
    assert "extras" not in slim
