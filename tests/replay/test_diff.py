"""Where two runs part (B5)."""

from __future__ import annotations

import numpy as np
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


def test_a_generator_that_nobody_seeded_is_no_difference_until_it_is_used(tmp_path):
    import random

    for name, seed in (("a", 1), ("b", 2)):
        random.seed(seed)
        record(tmp_path / name)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.same
    assert "of python," in found.note
    random.seed(3)
    later = diff(tmp_path / "a", record(tmp_path / "c", lr=0.2))
    assert (later.step, later.kind) == (0, "hyperparameters")


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


SCRIPT = """
import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(lr, sample):
    torch.manual_seed(0)
    x, y = torch.randn(48, 5), torch.randn(48, 1)
    if sample >= 0:
        x.view(torch.int32)[sample, 3] ^= 1
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    step = 0
    for _ in range(2):
        for a, b in DataLoader(TensorDataset(x, y), batch_size=8):
            loss = (model(a) - b).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            np.savez(f"left{step}.npz", **{n: p.detach().numpy() for n, p in model.state_dict().items()})
            step += 1


train(float(sys.argv[1]), int(sys.argv[2]))
"""


def ordered(array):
    """float32 as integers in the order of the numbers: neighbours are 1 apart, and so are -0.0 and 0.0."""
    words = array.view(np.int32).astype(np.int64)
    return np.where(words < 0, -(1 << 31) - 1 - words, words)


def gaps_of(a, b, step):
    """What the runs' own files say of the weights that `step` left: {name: (elements, size, ULPs)}, and their distance."""
    one, other = (np.load(folder / f"left{step}.npz") for folder in (a.parent, b.parent))
    apart = {n: np.abs(ordered(one[n]) - ordered(other[n])) for n in one}
    wide = [np.concatenate([file[n].ravel() for n in one]).astype(np.float64) for file in (one, other)]
    distance = np.linalg.norm(wide[0] - wide[1]) / np.linalg.norm(wide[0])
    return {n: (int((d > 0).sum()), d.size, int(d.max())) for n, d in apart.items() if d.any()}, distance


@pytest.fixture(scope="module")
def runs(scribe, tmp_path_factory):
    """Runs of one script: plain, with another learning rate, with one bit of sample 20 the other way."""
    found = {}
    for name, args in {"plain": (0.1, -1), "slow": (0.05, -1), "flipped": (0.1, 20)}.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "script.py").write_text(SCRIPT)
        found[name] = scribe.record(folder / "t", folder / "script.py", *args, options=("--detail", "replay"))
    return found


class TestReexecuted:
    """Where weights were not stored both programs are run again; their own files say what is right."""

    @pytest.mark.parametrize(("name", "step", "kind"), [("slow", 0, "hyperparameters"), ("flipped", 2, "data")])
    def test_which_tensors_how_many_elements_how_many_ulps(self, runs, name, step, kind):
        found = diff(runs["plain"], runs[name], reexecute=True)
        assert (found.step, found.kind) == (step, kind)
        wanted, _ = gaps_of(runs["plain"], runs[name], step)
        assert {gap.name: (gap.elements, gap.size, gap.max_ulp) for gap in found.tensors} == wanted != {}
        distances = {row[0]: row[1] for row in found.growth}
        assert {step, 11} <= distances.keys()
        assert distances == pytest.approx({k: gaps_of(runs["plain"], runs[name], k)[1] for k in distances}, rel=1e-9)

    def test_the_flipped_bit_is_found(self, runs):
        found = diff(runs["plain"], runs["flipped"])
        assert (
            found.detail == "part 0 of the batch differs in 1 of 8 rows, first row 4: 1 of 40 elements, by up to 1 ULP"
        )
        # Nothing was run for this, and no keyframe is there.
        assert found.tensors == []
        # Two processes whose other generators nobody seeded; nothing was drawn from those.
        assert found.note == "no seed was set for the generators of python and numpy, which differ from the start"

    def test_why_it_cannot_be_is_said(self, tmp_path):
        for name, options in (("a", {}), ("b", {"at": 5, "shift": 1e-3})):
            with tracer.record(tmp_path / name, detail="replay", keyframe_every=100):
                train(**options)
        found = diff(tmp_path / "a", tmp_path / "b", reexecute=True)
        assert (found.step, found.tensors) == (5, [])
        assert "block of code" in found.note
