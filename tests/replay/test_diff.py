"""Where two runs part (B5)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer
from replay import branch, diff

pytestmark = pytest.mark.usefixtures("module_unsealed")


def train(*, seed=0, lr=0.1, noise=0.0, at=None, shift=0.0, data_at=None):
    """Twelve steps; `at`: where a parameter is moved by `shift` ULPs' worth; `data_at`: where a sample is another."""
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(48, 5), torch.randn(48, 1)), batch_size=8)
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    step = 0
    torch.manual_seed(seed)
    for _ in range(2):
        for x, y in loader:
            loss = (model(x) - y).square().mean()
            if step == data_at:
                loss = loss * 1.5
            optimizer.zero_grad()
            loss.backward()
            if step == at:
                model.weight.grad[0, 3] += shift
            optimizer.step()
            step += 1


def record(path, **options):
    with tracer.record(path):
        train(**options)
    return path


@pytest.fixture
def plain(tmp_path):
    return record(tmp_path / "a")


def test_equal_runs_are_equal(plain, tmp_path):
    found = diff(plain, record(tmp_path / "b"))
    assert found.same
    assert (found.first, found.end, found.environment, found.sources) == (0, 12, {}, {})


def test_a_learning_rate(plain, tmp_path):
    found = diff(plain, record(tmp_path / "b", lr=0.2))
    assert (found.step, found.kind) == (0, "hyperparameters")
    assert "0.1 and 0.2" in found.detail


def test_a_seed(plain, tmp_path):
    found = diff(plain, record(tmp_path / "b", seed=1))
    assert (found.step, found.kind) == (0, "random numbers")


def test_a_gradient_names_the_tensor_and_its_distance(plain, tmp_path):
    found = diff(plain, record(tmp_path / "b", at=5, shift=1e-3))
    assert (found.step, found.kind) == (5, "gradient")
    (gap,) = found.tensors
    assert (gap.name, gap.elements, gap.size) == ("weight", 1, 5)
    assert gap.max_ulp > 0
    assert gap.max_abs == pytest.approx(1e-4, rel=0.01)
    assert [row[0] for row in found.growth][:2] == [5, 6]
    assert all(row[1] > 0 for row in found.growth)


def test_a_loss(plain, tmp_path):
    found = diff(plain, record(tmp_path / "b", data_at=7))
    assert (found.step, found.kind) == (7, "loss")


class TestGrowth:
    """How the distance grows, as rows, as text and as a picture."""

    @pytest.fixture
    def parted(self, tmp_path):
        for name, options in (("a", {}), ("b", {"at": 5, "shift": 1e-3})):
            with tracer.record(tmp_path / name, detail="replay", keyframe_every=3):
                train(**options)
        return tmp_path

    def test_keyframes_are_enough(self, parted):
        found = diff(parted / "a", parted / "b", reexecute=False)
        assert (found.step, found.kind) == (5, "gradient")
        # State 6 is a keyframe of both: the tensors just after the parting are known without running anything.
        assert [gap.name for gap in found.tensors] == ["weight"]
        assert all(row[1] > 0 for row in found.growth)
        assert {row[0] + 1 for row in found.growth} <= {6, 9, 12}

    def test_in_the_terminal_and_as_a_picture(self, parted):
        from click.testing import CliRunner

        from apps.cli_ask import diff as verb

        names = [str(parted / "a"), str(parted / "b")]
        done = CliRunner().invoke(verb, [*names, "--plot", str(parted / "x.svg")])
        assert "distance of the weights" in done.output
        assert sum("*" in row for row in done.output.splitlines()) >= 2
        assert (parted / "x.svg").read_text().count("<circle") == len(diff(*names, reexecute=False).growth)
        CliRunner().invoke(verb, [*names, "--plot", str(parted / "x.png")])
        assert (parted / "x.png").read_bytes()[1:4] == b"PNG"
        again = CliRunner().invoke(verb, [*names, "--plot", str(parted / "x.png")])
        assert "exists" in str(again.exception)

    def test_a_chart_of_nothing(self):
        from apps.chart import line

        assert line([(1, float("nan")), (2, 1.0)]) is None
        assert line([(1, 1.0), (2, 200.0)]).logarithmic
        assert not line([(1, 0.0), (2, 200.0)]).logarithmic


def test_a_branch_and_its_parent(digits, tmp_path):
    done = branch(digits, tmp_path / "b", at=10, steps=5, set={"bcl.coupled": False})
    found = diff(digits, done.path)
    assert (found.first, found.end) == (10, 15)
    assert (found.step, found.kind) == (10, "gradient")
