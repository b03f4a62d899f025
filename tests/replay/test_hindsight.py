"""Metrics defined after the run (B3): from what is stored, by re-execution, resumed, versioned."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tracer
from replay import hindsight
from replay.function import find
from replay.segments import Desk, Piece, cut, packed, unpacked
from replay.timeline import Span
from tracer.errors import StepError, UsageError

INTRUSIVE = """
import random
import numpy as np
import torch
from torch.nn import functional as F


def probe(step):
    data, target = step.batch
    random.random(), np.random.rand()
    model = step.model
    loss = F.nll_loss(model(data), target)
    loss.backward()
    torch.randn(7)
    gradient = model.fc.weight.grad.clone()
    model.eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.norm.running_mean.fill_(9)
    return {
        "again": loss,
        "loss_was": step.loss,
        "same_gradient": torch.equal(gradient, step.grads["fc.weight"]),
        "moved": (step.next_state["fc.weight"] - step.state["fc.weight"]).norm(),
        "mean": step.state["norm.running_mean"],
    }
"""


def write(folder, text, name="metric.py"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def done(basic, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("metric"), INTRUSIVE)
    return hindsight(basic, f"{path}:probe")


class TestReexecuted:
    def test_a_function_that_disturbs_everything_leaves_the_replay_exact(self, done):
        assert done.verdicts == {"verified": 24}

    def test_the_model_is_as_it_was(self, done):
        # Dropout included: the generators are those that the step started with.
        assert np.array_equal(done.scalars["again"], done.scalars["loss_was"])
        assert (done.scalars["same_gradient"] == 1).all()
        assert (done.scalars["moved"] > 0).all()

    def test_it_joins_the_index_with_its_source(self, done, basic):
        with tracer.open_trace(basic) as trace:
            rows = trace.sql(f"select step, value from metrics where name = 'again' and source = '{done.source}'")
            recorded = trace.sql("select step, loss from steps order by step").fetchall()
            assert sorted(rows.fetchall()) == recorded
            assert set(trace.verdicts.values()) == {"verified"}
        facts = json.loads(done.path.with_suffix(".json").read_text())
        assert facts["source"] == INTRUSIVE
        assert facts["verdicts"] == {"verified": 24}

    def test_arrays_are_kept_as_zarr_and_as_columns(self, done, basic):
        import zarr

        group = zarr.open_group(str(done.path.with_suffix(".zarr")), mode="r")
        assert group["mean"].shape == (24, 8)
        assert np.array_equal(group["mean"][:], done.arrays["mean"])
        with tracer.open_trace(basic) as trace:
            found = trace.sql("select value from metrics where name = 'mean[3]' and step = 7").fetchall()
        assert found[0][0] == done.arrays["mean"][7, 3]

    def test_another_source_is_another_version(self, done, basic, tmp_path):
        path = write(tmp_path, "def probe(step):\n    return {'again': step.loss + 1}\n")
        other = hindsight(basic, f"{path}:probe", steps=[4])
        assert other.digest != done.digest
        with tracer.open_trace(basic) as trace:
            found = trace.sql("select count(distinct source) from metrics where name = 'again' and step = 4").fetchall()
        assert found == [(2,)]


def test_a_loop_without_a_loader_can_be_asked_too(no_loader, tmp_path):
    path = write(tmp_path, "def size(step):\n    return {k: v.norm() for k, v in step.grads.items()}\n")
    done = hindsight(no_loader, f"{path}:size", steps=[0, 3, 4, 17])
    assert done.verdicts == {"verified": 4}
    assert done.scalars
    assert all((values > 0).any() for values in done.scalars.values())


class TestStored:
    def test_nothing_is_executed_where_what_is_stored_is_enough(self, digits, monkeypatch, tmp_path):
        monkeypatch.setattr("replay.session.Session._start", lambda *a, **k: pytest.fail("the program was started"))
        path = write(tmp_path, "def wins(step):\n    return step.captures['bcl/win_rate'].min()\n")
        done = hindsight(digits, f"{path}:wins", steps=range(0, 30, 3))
        assert done.verdicts == {"stored": 10}
        with tracer.open_trace(digits) as trace:
            assert done.scalars["wins"][2] == float(trace.captures["bcl/win_rate"][6].min())

    def test_a_python_function_works_as_well(self, digits):
        done = hindsight(digits, mean_win, steps=[1, 2])
        assert done.verdicts == {"stored": 2}

    def test_its_file_may_read_what_lies_beside_it(self, digits, tmp_path):
        (tmp_path / "limit.txt").write_text("3")
        text = (
            "from pathlib import Path\nLIMIT = float((Path(__file__).parent / 'limit.txt').read_text())\n"
            "def over(step):\n    return step.loss * 0 + LIMIT + float((Path(__file__).parent / 'limit.txt').read_text())\n"
        )
        done = hindsight(digits, f"{write(tmp_path, text)}:over", steps=[1])
        assert done.scalars["over"].tolist() == [6.0]

    def test_steps_that_there_are_not_are_refused(self, digits):
        with pytest.raises(StepError, match="0:30"):
            hindsight(digits, mean_win, steps=[29, 30])

    def test_an_error_says_where(self, digits):
        with pytest.raises(UsageError, match=r"wrong at step 5: ZeroDivisionError"):
            hindsight(digits, wrong, steps=[5])


def mean_win(step):
    return {"mean_win": step.captures["bcl/win_rate"].mean()}


def wrong(step):
    return 1 / 0


class TestResume:
    def test_a_killed_run_goes_on_with_the_pieces_it_left(self, basic, tmp_path, monkeypatch):
        path = write(tmp_path, "def late(step):\n    return step.state['fc.bias'].sum()\n")
        asked = find(f"{path}:late")
        desk = Desk(basic, f"late-{asked.digest}")
        desk.put(Piece(list(range(5)), [{"late": 42.0}] * 5, ["verified"] * 5))
        seen = []
        done = hindsight(basic, asked, steps=range(8), progress=lambda n, total: seen.append((n, total)))
        assert seen[0] == (5, 8)
        assert seen[-1] == (8, 8)
        assert (done.scalars["late"][:5] == 42).all()
        assert (done.scalars["late"][5:] != 42).all()
        assert list(desk.found()) == []

    def test_a_piece_comes_back_as_it_was(self):
        piece = Piece([3], [{"a": float("nan"), "b": np.arange(6.0).reshape(2, 3)}], ["verified"])
        back = unpacked(packed(piece))
        assert (back.steps, back.verdicts) == (piece.steps, piece.verdicts)
        assert np.isnan(back.values[0]["a"])
        assert np.array_equal(back.values[0]["b"], piece.values[0]["b"])

    def test_pieces_end_at_keyframes_and_sessions(self):
        assert cut(range(0, 12, 2), [0, 5, 8], [Span(0, 0, 6), Span(1, 6, 12)]) == [[0, 2, 4], [6], [8, 10]]


def test_what_is_not_there_is_one_line(basic, tmp_path):
    path = write(tmp_path, "def late(step):\n    return step.next_state['fc.bias'].sum()\n")
    with pytest.raises(UsageError, match="no Dask scheduler answers at nonsense"):
        hindsight(basic, f"{path}:late", scheduler="nonsense")
    with pytest.raises(UsageError, match=r"metric\.py has no function early"):
        hindsight(basic, f"{path}:early")


@pytest.mark.slow
def test_workers_share_the_segments(basic, tmp_path):
    path = write(tmp_path, "def late(step):\n    return step.next_state['fc.bias'].sum()\n")
    alone = hindsight(basic, f"{path}:late")
    shared = hindsight(basic, f"{path}:late", workers=2)
    assert shared.verdicts == {"verified": 24}
    assert np.array_equal(alone.scalars["late"], shared.scalars["late"])
