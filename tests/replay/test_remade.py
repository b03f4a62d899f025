"""Batches that never come again: how they were made is stored, and replay makes them again, bit for bit (C3, B1, B2)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tracer
from apps.cli import run
from replay import Session, hindsight
from tests.replay.drive import seek_about
from tracer import values
from tracer.errors import MissingDataError, ReplayError

PROGRAMS = Path(__file__).parents[1] / "programs"


def record(tmp_path: Path, name: str, *options: str) -> Path:
    """`rewind record` of a program, with batches stored as recipes from the first that has one."""
    out = tmp_path / f"{name}.trace"
    # However small its rows are, a batch is made again.
    code = "import sys; from tracer import batches; from apps.cli import run; batches.ROW_BYTES = 1; sys.exit(run(sys.argv[1:]))"
    asked = [
        "record",
        "--out",
        str(out),
        "--keyframe-every",
        "5",
        "--batch-mb",
        "0",
        *options,
        str(PROGRAMS / f"{name}.py"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAMS.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *asked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bare = subprocess.run(
        [sys.executable, str(PROGRAMS / f"{name}.py")], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == bare.stdout  # to the digest of the last weights
    return out


def made(trace: tracer.Trace) -> list[int]:
    """The steps of which there is a recipe in place of a batch."""
    return [k for k in range(trace.steps) if "made" in trace.record(k)]


@pytest.fixture(scope="module", params=["loader_augment", "augment_workers"])
def recipes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a program that augments, in its own process or in workers."""
    return record(tmp_path_factory.mktemp("recipes"), request.param)


def test_every_step_is_verified_in_any_order(recipes: Path) -> None:
    """As whole batches are: all verified, and sought about in."""
    with tracer.open_trace(recipes) as trace:
        assert len(made(trace)) >= trace.steps - 6  # what workers had made before they were asked
        found = seek_about(recipes, 3)
    assert {seek["kind"] for seek in found["seeks"]} == {"verified"}
    assert all(seek["equal"] for seek in found["seeks"])
    assert run(["verify", str(recipes)]) == 0


@pytest.mark.parametrize("name", ["skip_batches", "two_loaders", "gan", "kfold"])
def test_other_loops_are_verified_too(tmp_path: Path, name: str) -> None:
    """Batches that are skipped, second loaders, loops that several fetches feed; samplers that draw where no dataset does."""
    trace = record(tmp_path, name)
    with tracer.open_trace(trace) as opened:
        assert len(made(opened)) > opened.steps - 2
    assert run(["verify", str(trace)]) == 0


def test_the_batch_is_given_by_the_program(recipes: Path) -> None:
    """A session gives the batch of any step, twice the same, and a step taken after that is verified; so does a trace."""
    with tracer.open_trace(recipes) as trace, Session(trace) as session:
        k = made(trace)[-2]
        with pytest.raises(MissingDataError, match="made again"):
            trace.stored_batch(k)
        session.seek(k)
        images, labels = session.batch
        again, _ = session.batch
        assert images.shape[0] == labels.shape[0] == 16
        assert torch.equal(images, again)
        assert session.step().kind == "verified"
        session.back()
        assert torch.equal(session.batch[0], images)
        assert torch.equal(trace.batch(k)[0], images)


def test_hindsight_sees_the_batch(recipes: Path, tmp_path: Path) -> None:
    """A question about batches that were not stored is answered by making them again."""
    (tmp_path / "sums.py").write_text("def sums(step): return {'sum': float(step.batch[0].double().sum())}\n")
    with tracer.open_trace(recipes) as trace:
        k = made(trace)[3]
        found = hindsight(trace, f"{tmp_path / 'sums.py'}:sums", steps=range(k, k + 2))
        with Session(trace) as session:
            session.seek(k)
            assert found.scalars["sum"][0] == float(session.batch[0].double().sum())


def test_a_branch_without_a_change_is_its_parent(recipes: Path, tmp_path: Path) -> None:
    """Its own recipes are the parent's; diff holds their digests against each other."""
    out = tmp_path / "branch"
    assert run(["branch", str(recipes), "--at", "7", "--steps", "5", "--out", str(out)]) == 0
    assert run(["diff", str(recipes), str(out)]) == 0
    with tracer.open_trace(out) as branch:
        assert "made" in branch.record(branch.steps - 1)
    assert run(["verify", str(out)]) == 0


def test_a_dataset_that_changed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is made of other data is not the recorded batch: that is said, and nothing rests on it."""
    program = tmp_path / "data.py"
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((32, 80), np.float32))
    program.write_text(
        "import numpy as np, torch\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 32\n"
        f"    def __getitem__(self, i): return torch.from_numpy(np.load({str(tmp_path / 'images.npy')!r})[i]) + torch.randn(80)\n"
        "model = torch.nn.Linear(80, 2)\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.0)\n"
        "for epoch in range(2):\n"
        "    for x in torch.utils.data.DataLoader(Data(), 8):\n"
        "        model(x).sum().mul(0.0).backward(); optimizer.step()\n"
    )
    out = tmp_path / "t"
    assert run(["record", "--out", str(out), "--batch-mb", "0", str(program)]) == 0
    assert run(["verify", str(out)]) == 0
    changed = np.load(tmp_path / "images.npy")
    changed[5, 3] += 1e-3
    np.save(tmp_path / "images.npy", changed)
    capsys.readouterr()
    # Neither loss nor weights depend on the data here: the batch alone tells.
    assert run(["verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert "batch" in said
    assert "the dataset gives another batch" in said
    with tracer.open_trace(out) as trace, pytest.raises(ReplayError, match="another batch"):
        trace.batch(4)


def test_a_paused_run_shows_the_batch_that_its_trace_lacks(tmp_path: Path) -> None:
    """What the loop holds of the step is asked of the process."""
    model = torch.nn.Linear(80, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = torch.rand(24, 80)
    with tracer.record(tmp_path / "t", batch_bytes=0) as recorder:
        for k, batch in enumerate(torch.utils.data.DataLoader(data, 8)):
            model(batch).sum().backward()
            optimizer.step()
            if k == 2:
                node, buffers = recorder._steps._now.fed.stored()
                assert torch.equal(values.decode(node, buffers.__getitem__), data[16:])
