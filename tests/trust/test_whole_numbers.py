"""Numbers that no float holds: kept exactly wherever a program says them, or refused in one line; never rounded. # S1.1, S1.2"""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

import tracer
from replay import branch, hindsight, verify
from replay.function import tidy
from tests.tracer.training import make, train
from tracer.errors import UsageError
from tracer.repair import repair

BIG = 2**53 + 1
EXACT = {
    "python": BIG,
    "negative": -(2**63),
    "numpy": np.int64(-BIG),
    "unsigned": np.uint64(2**64 - 1),
    "python_unsigned": 2**64 - 3,
    "tensor": torch.tensor(BIG),
    "tensor_of_one": torch.tensor([BIG]),
    "array": np.array(BIG),
    "tensor_unsigned": torch.tensor(2**64 - 5, dtype=torch.uint64),
    "complex": 1 - 2j,
}
FLOATS = {
    "small": (2**53, 2.0**53),
    "least": (-(2**53), -(2.0**53)),
    "truth": (True, 1.0),
    "numpy_truth": (np.bool_(False), 0.0),
    "short": (np.int64(7), 7.0),
    "half": (torch.tensor(0.1, dtype=torch.bfloat16), float(torch.tensor(0.1, dtype=torch.bfloat16))),
    "single": (np.float32(0.1), float(np.float32(0.1))),
    "nan": (None, math.nan),
    "minus_zero": (-0.0, -0.0),
}
REFUSED = {"huge": 2**64, "enormous": 10**400, "words": "many", "several": torch.ones(2), "batch_size": math.nan}


@pytest.fixture(scope="module")
def logged(tmp_path_factory, module_unsealed):
    path = tmp_path_factory.mktemp("logged") / "t"
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("rewind").addHandler(handler)
    given = {**EXACT, **{name: value for name, (value, _) in FLOATS.items()}, **REFUSED}
    with tracer.record(path):
        train(epochs=1, each=lambda step, model, loss: tracer.log(**given))
    logging.getLogger("rewind").removeHandler(handler)
    return path, lines


@pytest.mark.parametrize("form", ["tail", "sealed"])
def test_a_logged_number_is_kept_exactly(logged, form):
    path, _ = logged
    if form == "sealed":
        repair(path)
    with tracer.open_trace(path) as trace:
        assert (trace.steps, trace.damage()) == (5, [])
        for name, value in EXACT.items():
            plain = value.item() if hasattr(value, "item") else value
            assert trace.captures[name][3].tolist() == [plain], name
            if not isinstance(plain, complex):
                assert trace.sql(f'select "{name}" from features where step = 3').fetchall() == [(plain,)], name
        for name, (_, value) in FLOATS.items():
            found = trace.sql(f'select "{name}" from steps where step = 3').fetchall()[0][0]
            assert np.float64(found).tobytes() == np.float64(value).tobytes(), name
        assert trace.sql("select batch_size from steps where step = 3").fetchall() == [(4,)]


def test_what_cannot_be_kept_is_refused_once_by_name(logged):
    _, lines = logged
    for name in REFUSED:
        assert len([line for line in lines if line.startswith(f"scalar {name!r} is left out: ")]) == 1, (name, lines)
    assert not [line for line in lines if "recording stopped" in line]
    assert all("\n" not in line and len(line) < 300 for line in lines)


@pytest.mark.parametrize("size", [-1, 2.5, BIG, "many", math.inf])
def test_a_batch_size_that_is_none_leaves_the_batch_s_own(unsealed, tmp_path, size):
    with tracer.record(tmp_path / "t"):
        train(epochs=1, each=lambda step, model, loss: tracer.log(batch_size=size))
    repair(tmp_path / "t")
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.sql("select batch_size from steps").fetchall() == [(4,)] * 5


def program():
    model, optimizer = make()
    loader = torch.utils.data.DataLoader(torch.arange(24.0).reshape(8, 3), batch_size=2)
    for x in loader:
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
        tracer.capture("text", "no tensor")
        tracer.capture("huge", 2**70)
        tracer.log(words="many", odd=BIG)


def test_what_was_left_out_stops_no_replay_and_no_branch(unsealed, tmp_path):
    with tracer.record(tmp_path / "t", detail="replay"):
        program()
    report = verify(tmp_path / "t", program=program)
    assert report.count("verified") == 4
    done = branch(tmp_path / "t", tmp_path / "b", at=1, set={"optimizer.lr": "0.5x"}, program=program)
    with done.open() as trace:
        assert trace.captures["odd"][2].tolist() == [BIG]
        assert set(trace.captures) == {"odd"}


class TestHindsight:
    @pytest.mark.parametrize("value", [BIG, np.int64(BIG), torch.tensor(-BIG), 2**70])
    def test_one_number_is_refused(self, value):
        with pytest.raises(UsageError, match="no float holds"):
            tidy("count", value)

    @pytest.mark.parametrize("value", [1 - 2j, torch.tensor(1 - 2j)])
    def test_so_is_a_complex_one(self, value):
        with pytest.raises(UsageError, match="complex"):
            tidy("count", value)

    def test_an_array_is_exact_and_no_rounded_metric(self, logged):
        path, _ = logged
        said = hindsight(path, whole)
        assert said.arrays["whole"].tolist() == [[BIG + k, k] for k in range(5)]
        with tracer.open_trace(path) as trace:
            assert trace.captures["whole"][3].tolist() == [BIG + 3, 3]
            assert trace.sql("select count(*) from metrics where name like 'whole%'").fetchall() == [(0,)]

    def test_shapes_that_differ_are_refused_rather_than_rounded(self, logged):
        path, _ = logged
        with pytest.raises(UsageError, match="one shape"):
            hindsight(path, growing)


def whole(step):
    return {"whole": [2**53 + 1 + step.step, step.step]}


def growing(step):
    return {"growing": [2**53 + 1] * (1 + step.step)}
