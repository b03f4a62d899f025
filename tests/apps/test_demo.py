"""The demo: its script, its table against plain NumPy, and the whole of it recorded, replayed and verified."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps import demo, demo_train
from apps.findings import findings, hardest_images, stored_step
from tracer.active import set_listener
from tracer.errors import UsageError

HOUSE = Path(__file__).parents[2]


@dataclass
class Ear:
    """Hears a plain run of the demo's script, and plays it back as a trace would."""

    steps: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def capture(self, key: str, value: torch.Tensor, dims: Any) -> None:
        if key == "batch/loss_per_sample":
            self.steps.append({})
        self.steps[-1][key] = value.clone()

    def log(self, scalars: dict[str, Any]) -> None: ...

    def progress(self, fields: dict[str, Any]) -> None: ...


@dataclass
class Series:
    values: dict[int, torch.Tensor]

    @property
    def steps(self) -> np.ndarray:
        return np.array(sorted(self.values))

    def __contains__(self, k: int) -> bool:
        return k in self.values

    def __getitem__(self, k: int) -> torch.Tensor:
        return self.values[k]


@dataclass
class HeardTrace:
    """The part of a trace's public face that the findings use."""

    ear: Ear
    weights: list[torch.Tensor]
    batches: list[Any] = field(default_factory=list)

    @property
    def captures(self) -> dict[str, Series]:
        keys = self.ear.steps[0]
        return {key: Series({k: step[key] for k, step in enumerate(self.ear.steps)}) for key in keys}

    def state(self, k: int) -> dict[str, torch.Tensor]:
        return {"encoder.weight": self.weights[k]}

    def record(self, k: int) -> dict[str, float]:
        return {"loss": float(self.ear.steps[k]["batch/loss_per_sample"].mean())}

    def batch(self, k: int) -> Any:
        return self.batches[k]


def heard(*argv: str) -> HeardTrace:
    """Run the script in this process and keep the encoder's weight before each step and after the last."""
    trace = HeardTrace(Ear(), [])

    class Spy(demo_train.Autoencoder):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            trace.weights.append(self.encoder.weight.detach().clone())
            self.last = self.encoder.weight
            trace.model = self  # type: ignore[attr-defined]
            return super().forward(images)

    before, threads = set_listener(trace.ear), torch.get_num_threads()
    torch.set_num_threads(1)  # as the recordings it is compared with: sums of two threads may differ in their last bit
    original, demo_train.Autoencoder = demo_train.Autoencoder, Spy
    try:
        demo_train.train(demo_train.parse(argv))
    finally:
        demo_train.Autoencoder = original
        set_listener(before)
        torch.set_num_threads(threads)
    trace.weights.append(trace.model.encoder.weight.detach().clone())  # type: ignore[attr-defined]
    return trace


def test_data_are_the_digits_enlarged_to_grey_levels():
    data = demo_train.digits()
    images, labels = data.tensors
    assert images.shape == (1797, 1, 28, 28)
    assert labels.unique().tolist() == list(range(10))
    assert images.min() == 0
    assert images.max() == 1
    assert torch.equal((images * 255).round() / 255, images)


def test_script_stops_at_its_steps_and_repeats_itself(capsys):
    first, second = heard("--steps", "16"), heard("--steps", "16")
    assert len(first.ear.steps) == 16
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))
    assert "epoch 2: step 16" in capsys.readouterr().out
    other = heard("--steps", "3", "--seed", "1")
    assert not torch.equal(other.weights[0], first.weights[0])


def test_control_captures_no_bcl():
    assert set(heard("--steps", "2", "--control").ear.steps[0]) == {"batch/loss_per_sample"}


@pytest.mark.parametrize("mode", ["--som=medium", "--decoupled"])
def test_findings_equal_numpy_on_what_was_captured(mode):
    trace = heard("--steps", "3", mode)
    found = findings(stored_step(trace, 1))
    before, after = (trace.weights[k].double().numpy() for k in (1, 2))
    seen = {key: value.double().numpy() for key, value in trace.ear.steps[1].items()}

    def off_diagonal(x: np.ndarray) -> float:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return float((unit @ unit.T)[~np.eye(len(x), dtype=bool)].mean())

    rate = 0.005 * (1 - seen["bcl/feature_novelty"]) if mode == "--decoupled" else np.full(64, 0.005)
    som = rate[:, None] * (seen["bcl/som_targets"] - before)
    moved = after - before - som
    som_norm = np.linalg.norm(som, axis=1)
    np.testing.assert_allclose(som_norm, seen["bcl/som_norm"], rtol=1e-4)
    assert found["alive"] == (seen["bcl/win_rate"] >= 0.01).sum()
    assert found["cosine_of_weights"] == pytest.approx(off_diagonal(before))
    assert found["cosine_of_targets"] == pytest.approx(off_diagonal(seen["bcl/som_targets"]))
    assert found["ratio_by_masked_gradient"] == pytest.approx(
        som_norm.mean() / np.linalg.norm(seen["bcl/grad_masked"], axis=1).mean(), rel=1e-4
    )
    assert found["ratio_by_movement"] == pytest.approx(som_norm.mean() / np.linalg.norm(moved, axis=1).mean(), rel=1e-4)
    assert found["fight"] == ((som * moved).sum(axis=1) < 0).sum()


def test_the_researchers_table_is_one_function_of_ten_lines():
    assert len(inspect.getsource(findings).strip().splitlines()) <= 10


def test_coupled_suppresses_the_gradient_and_targets_lead():
    """What bcl.md says is known, on the digits: seen within 60 steps."""
    coupled = heard("--steps", "60")
    rows = [findings(stored_step(coupled, k)) for k in (0, 59)]
    assert rows[0]["cosine_of_weights"] < 0.1
    assert rows[1]["cosine_of_weights"] > 0.9
    assert min(row["cosine_of_targets"] for row in rows) > 0.9
    assert min(row["ratio_by_masked_gradient"] for row in rows) > 1000
    decoupled = findings(stored_step(heard("--steps", "1", "--decoupled"), 0))
    assert decoupled["ratio_by_masked_gradient"] < rows[0]["ratio_by_masked_gradient"] / 100


def test_hardest_images_are_known_by_their_content():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    batches = [(images[[0, 1]], torch.tensor([5, 6])), (images[[1, 3]], torch.tensor([6, 8]))]
    ear = Ear([{"batch/loss_per_sample": torch.tensor(v)} for v in ([1.0, 2.0], [4.0, 2.5])])
    found = hardest_images(HeardTrace(ear, [], batches), count=2)
    assert [(i.mean_loss, i.seen, i.step, i.position, i.label) for i in found] == [(3.0, 2, 1, 0, 6), (2.5, 1, 1, 1, 8)]


def test_conclusions_say_what_the_figures_show():
    first = {"step": 0, "cosine_of_weights": 0.01, "cosine_of_targets": 0.98}
    last = {"step": 9, "cosine_of_weights": 0.5, "cosine_of_targets": 0.99, "ratio_by_masked_gradient": 2000.0}
    weak = demo.conclusions(demo.Demo(Path("x"), "coupled", [first, last | {"ratio_by_movement": 0.5}], None))
    assert "at step 0, 9" in weak[1]
    assert "the optimizer does more" in weak[2]
    strong = demo.conclusions(demo.Demo(Path("x"), "coupled", [first, last | {"ratio_by_movement": 2.0}], None))
    assert "the SOM does more" in strong[2]
    control = demo.Demo(Path("x"), "control", [{"step": 0, "cosine_of_weights": 0.0}] * 2, None)
    assert len(demo.conclusions(control)) == 1


def test_columns_are_those_that_the_rows_have():
    names, cells = demo.columns([{"step": 0, "loss": 0.25, "cosine_of_weights": 0.5}])
    assert names == ["step", "loss", "cosine of weights"]
    assert cells == [[0, "0.2500", "0.5000"]]


@pytest.mark.parametrize(("steps", "mode"), [(0, "coupled"), (5, "entangled")])
def test_wrong_use_is_said_before_anything_is_written(tmp_path, steps, mode):
    with pytest.raises(UsageError):
        demo.run_demo(steps, tmp_path / "t", mode)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["coupled", "control"])
def test_the_demo_is_recorded_replayed_and_verified(tmp_path, mode):  # C1, C3
    """55 steps, so that replay crosses a recomputation of BCL's neighbour table (hidden state) at step 50."""
    code = (
        "import sys, json; from apps.demo import run_demo; d = run_demo(55, sys.argv[1], sys.argv[2]);"
        "print(json.dumps([d.rows, d.report.verified, d.report.steps]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t"), mode],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    import json

    rows, verified, steps = json.loads(done.stdout.splitlines()[-1])
    assert verified is True
    assert steps == 55
    assert [row["step"] for row in rows] == [0, 50, 54]
    plain = heard("--steps", "55", *(() if mode == "coupled" else ("--control",)))
    assert rows[-1]["loss"] == pytest.approx(plain.record(54)["loss"], abs=0)
