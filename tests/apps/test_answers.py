"""What the overview says of a run, and where it leads. # S4.9"""

from __future__ import annotations

import json
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.finding import Finding
from apps.answers import about, answers, quick_answers, short, standouts, thinned
from apps.lookout import Found, Lookout
from apps.recorded import Recorded
from apps.runs import Runs
from apps.viewer import Viewer
from apps.views.overview import overview_frame
from tests.tracer.synthetic import make_trace
from tracer import manifest
from tracer.errors import TraceError
from tracer.trace import open_trace


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "run"
    truth = make_trace(path, seal=False, features=8, inputs=64, steps=60)
    return Recorded(open_trace(path)), truth


def by_question(run):
    return {one.question: one for one in answers(run)}


def test_questions_are_answered_with_the_place_that_shows_it(both):
    run, truth = both
    found = by_question(run)
    losses = np.array([truth.loss[k] for k in range(60)])
    loss = found["How did the loss go?"]
    assert loss.go == {"tab": "metrics", "step": int(losses.argmin())}
    assert f"highest {short(losses.max())} at step {losses.argmax()}" in loss.answer
    rates = np.stack([truth.captures["bcl/win_rate", k] for k in range(60)])
    dead = {f: int(np.flatnonzero(rates[:, f] >= 0.01)[-1]) + 1 if (rates[:, f] >= 0.01).any() else 0 for f in range(8)}
    dead = {f: k for f, k in dead.items() if k < 60}
    died = found["When did features die?"]
    assert {word: count for word, count, _ in died.parts} == {"alive": 8 - len(dead), "dead": len(dead)}
    assert (died.go["feature"], died.go["step"]) == min(dead.items(), key=lambda pair: (pair[1], pair[0]))
    assert len(quick_answers(run)) == 2


def test_a_branch_speaks_of_its_own_steps(tmp_path, monkeypatch):  # B4
    """Its parent's steps are in its figures, and cannot be gone to."""
    truth = make_trace(tmp_path / "run", seal=False, features=8, inputs=64, steps=60, per_epoch=10)
    make_trace(tmp_path / "elder", seal=False, features=8, inputs=64, steps=60, seed=1)
    elder = manifest.read(tmp_path / "elder").id
    parent = manifest.Parent(str(tmp_path / "elder"), elder, 40, {"optimizer.lr": "0.5x"})
    replace(manifest.read(tmp_path / "run"), parent=parent).write(tmp_path / "run")
    monkeypatch.setattr(Recorded, "first", 40)
    run = Recorded(open_trace(tmp_path / "run"))
    losses = [truth.loss[k] for k in range(40, 60)]
    found = by_question(run)
    assert found["How did the loss go?"].answer.startswith(f"From {short(losses[0])} to {short(losses[-1])}; ")
    assert all(one.go.get("step", 40) >= 40 for one in found.values())
    assert any(question.startswith("Which") for question in found)
    facts = dict(about(run))
    assert facts["branch"] == "of elder at step 40: optimizer.lr=0.5x"
    assert facts["steps"] == "20 in 2 epochs", "of six"


def test_numbers_that_are_not_finite_are_said(tmp_path):  # S1.2
    make_trace(tmp_path / "run", seal=False, features=4, inputs=64, steps=5, nan_at=2)
    run = Recorded(open_trace(tmp_path / "run"))
    assert "not finite at 1 step." in by_question(run)["How did the loss go?"].answer
    assert [short(v) for v in (np.nan, np.inf, -np.inf, 12345.6, 1e-7)] == ["NaN", "∞", "-∞", "12346", "1e-07"]


def test_what_is_nan_is_neither_alive_nor_unlike(tmp_path, monkeypatch):  # S1.2
    make_trace(tmp_path / "run", seal=False, features=4, inputs=64, steps=5)
    run = Recorded(open_trace(tmp_path / "run"))
    whole = run.trace.sql

    def all_nan(query, *args):
        return whole(
            query.replace("isnan(win_rate)", "win_rate is not null").replace("win_rate >= 0.01 or", "true or"), *args
        )

    monkeypatch.setattr(run.trace, "sql", all_nan)
    monkeypatch.setattr("apps.answers.off_diagonal_mean", lambda rows: float("nan"))
    found = by_question(run)
    assert (
        found["Do features die?"].answer == "Nobody can tell: at the end the win rate of 4 of 4 features of bcl is NaN."
    )
    assert found["Do features die?"].parts == (("alive", 0, "green"), ("dead", 0, "red"), ("unknown", 4, "violet"))
    (alike,) = (one for one in found.values() if one.go.get("tab") == "matrices")
    assert alike.answer.startswith("The mean cosine between the rows of ")


def test_a_run_of_one_step_is_compared_with_nothing(tmp_path):
    make_trace(tmp_path / "run", seal=False, features=4, inputs=64, steps=1)
    found = by_question(Recorded(open_trace(tmp_path / "run")))
    assert found["How did the loss go?"].answer.endswith(" at step 0, the only one that has one.")
    assert not any(question.startswith("Which") for question in found)


@pytest.mark.parametrize("options", [{"captures": False}, {"weights": False}, {"steps": 1}, {"steps": 0}])
def test_a_run_that_lacks_things_leaves_answers_out(tmp_path, options):
    make_trace(tmp_path / "run", **{"seal": False, "features": 4, "inputs": 5, "steps": 3, **options})
    run = Recorded(open_trace(tmp_path / "run"))
    found = by_question(run)
    assert ("When did features die?" in found or "Do features die?" in found) == bool(run.layers)
    assert dict(about(run))["recorded"]


def test_findings_that_begin_together_are_taken_together():
    one, two = (Finding("nan", 3, f"{n} is NaN.", f"select {n}", "Look.") for n in ("loss", "rmse"))
    (found,) = standouts([one, two])
    assert (found.kind, found.step, found.lines, found.query) == (
        "nan",
        3,
        ("loss is NaN.", "rmse is NaN."),
        "select loss",
    )
    assert len(standouts([one, Finding("nan", 4, "", "", "Look.")])) == 2


def test_large_matrices_are_thinned():
    assert thinned(np.zeros((512, 512))).shape == (128, 128)
    assert thinned(np.zeros((5, 5))).shape == (5, 5)


def test_a_run_is_looked_into_once_for_all_pages(both, monkeypatch):
    run, _ = both
    lookout, told, count = Lookout(), [], []
    monkeypatch.setattr(Lookout, "examine", lambda self, path: count.append(path) or [])
    for _ in range(2):
        done = Event()
        lookout.look(
            run, lambda found, done=done: (told.append(found), done.set() if found.standouts is not None else None)
        )
        assert done.wait(60)
    lookout.close()
    assert len(count) == 1
    assert [found.standouts for found in told] == [None, (), ()], "the answers come before the doctor's word"


def test_a_run_that_grows_faster_than_it_is_looked_into_is_looked_into_at_its_newest(both, monkeypatch):
    run, _ = both
    lookout, count, begun, go, done = Lookout(), [], Event(), Event(), Event()

    def examine(self, path):
        count.append(path)
        begun.set()
        assert go.wait(60)
        return []

    monkeypatch.setattr(Lookout, "examine", examine)
    lookout.look(SimpleNamespace(trace=run.trace, last=0, name="run"), lambda found: None)
    assert begun.wait(60)
    for last in range(1, 50):
        tell = (lambda found: done.set() if found.standouts is not None else None) if last == 49 else lambda found: None
        lookout.look(SimpleNamespace(trace=run.trace, last=last, name="run"), tell)
    go.set()
    assert done.wait(60)
    lookout.close()
    assert len(count) == 2, "the one that was under way, and the newest"


def test_a_doctor_who_cannot_look_says_why(tmp_path):
    with pytest.raises(TraceError, match="nothing"):
        Lookout().examine(tmp_path / "nothing")


def test_answers_stay_where_the_doctor_fails(both):
    run, _ = both

    # The keyframes of this trace are none that a doctor could read: its process ends with a complaint.
    lookout, told, done = Lookout(), [], Event()
    lookout.look(run, lambda found: (told.append(found), done.set() if found.standouts is not None else None))
    assert done.wait(60)
    lookout.close()
    assert told[-1].answers
    assert "layout" in told[-1].problem


def test_what_is_clicked_is_chosen(both):
    run, _ = both
    viewer = Viewer(Runs([run.trace.path]))
    viewer.look = lambda done: None  # What a thread finds meanwhile would come over what is put here.
    viewer.show()
    view = viewer._view("overview")
    view._found = Found(tuple(answers(run)), tuple(standouts([Finding("nan", 7, "It is.", "select 7", "Look.")])))
    header, _ = overview_frame(about(run), view._found, live=False)
    json.dumps(header["findings"])
    place = [one["question"] for one in header["answers"]].index("When did features die?")
    view._heard({"do": "go", "of": "answer", "index": place})
    assert (viewer.selection.tab, viewer.selection.setting("trajectories.metric")) == ("trajectories", "win_rate")
    view._heard({"do": "sql", "of": "finding", "index": 0})
    assert (viewer.selection.tab, viewer.selection.setting("sql.query")) == ("sql", "select 7")
    view._heard({"do": "go", "of": "finding", "index": 0})
    assert (viewer.selection.tab, viewer.selection.step) == ("batch", 7)
    for nonsense in ({"do": "go", "index": 99}, {"do": "go", "index": "x"}, {"do": None}, {}):
        view._heard({"of": "answer", **nonsense})
    assert len(view.export()["question"]) == len(header["answers"]) + 1
