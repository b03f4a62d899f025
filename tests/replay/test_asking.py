"""Questions asked of a session (B4, B6), on a small loop in this very process."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer
from replay import Session, branch, hindsight, until, verify
from tracer import addenda
from tracer.errors import DamageError, MissingDataError, NameUnknownError, StepError, UsageError


def train():
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(40, 6), torch.randn(40, 2)), batch_size=4, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.2), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        for x, y in loader:
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tracer.capture("layer/win_rate", torch.rand(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory, module_unsealed):
    path = tmp_path_factory.mktemp("run") / "t"
    with tracer.record(path, detail="replay", keyframe_every=4):
        train()
    return path


@pytest.fixture
def session(run):
    with Session(run, program=train) as opened:
        yield opened


def losses(run):
    with tracer.open_trace(run) as trace:
        return [trace.record(k)["loss"] for k in range(trace.steps)]


class TestUntil:
    def test_it_goes_there_and_says_where(self, session, run):
        found = losses(run)
        border = sorted(found)[-3]
        first, second = [k for k in range(20) if found[k] > border]
        assert session.until(f"loss > {border!r}") == first == session.position
        assert session.step().verified
        assert session.until(f"loss > {border!r}") == second == session.position
        assert session.until(f"loss > {border!r}", backward=True) == second
        session.seek(second - 1)
        assert session.until(f"loss > {border!r}", backward=True) == first

    def test_where_it_never_holds_it_stays(self, session):
        session.seek(7)
        assert session.until("loss < 0") is None
        assert session.position == 7
        session.seek(20)
        assert session.until("loss > 0") is None
        assert session.until("loss > 0", backward=True) == 19

    def test_what_was_not_recorded_is_executed_again(self, session, run):
        with Session(run, program=train) as other:
            sizes = [float(other.seek(k).state["0.bias"].norm()) for k in (9, 10)]
        sign = ">" if sizes[1] > sizes[0] else "<"
        session.seek(9)
        assert session.until(f"norm(0.bias) {sign} {sum(sizes) / 2!r}") == 10
        assert session.step().verified

    def test_the_end_of_a_name_will_do(self, session, run):
        with tracer.open_trace(run) as trace:
            least = trace.captures["layer/win_rate"].read().min(axis=1)
        assert session.until("min(win_rate) < 0.1") == int((least < 0.1).nonzero()[0][0])
        with pytest.raises(NameUnknownError, match="say which"):
            session.until("norm(weight) > 0")


class TestBranch:
    def test_from_here(self, session, tmp_path):
        session.seek(6)
        done = session.branch(tmp_path / "b", set={"optimizer.lr": "*0.5"}, steps=5)
        assert (done.at, done.steps, done.control.kind) == (6, 5, "verified")
        assert session.position == 6
        assert session.step().verified
        with done.open() as trace:
            assert trace.record(6)["lr"] == 0.025
        assert verify(done.path, program=train).verified

    def test_from_elsewhere(self, session, tmp_path):
        assert session.branch(tmp_path / "b", at=3, steps=1).at == 3
        assert all(thread.name != "rewind-errands" for thread in threading.enumerate())
        with pytest.raises(UsageError, match="exists"):
            session.branch(tmp_path / "b")


@pytest.fixture(scope="module")
def tree(run, tmp_path_factory):
    """The run, moved beside its branch at 6 and that one's branch at 9: (run, first, second)."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(run, folder / "t")
    first = branch(folder / "t", folder / "a", at=6, steps=10, set={"optimizer.lr": 0.01}, program=train)
    second = branch(first.path, folder / "b", at=9, steps=4, set={"optimizer.lr": 0.02}, program=train)
    return folder / "t", first.path, second.path


class TestHistory:
    """What lies before a branch is its parent's: shared, not copied."""

    def test_every_question_reaches_it(self, tree):
        run, first, second = tree
        with tracer.open_trace(run) as old, tracer.open_trace(first) as a, tracer.open_trace(second) as b:
            assert (b.first_step, b.steps) == (9, 13)
            for k, elder in ((2, old), (7, a)):
                assert b.record(k) == elder.record(k)
                assert b.fingerprint(k) == elder.fingerprint(k)
                assert torch.equal(b.batch(k)[0], elder.batch(k)[0])
                assert torch.equal(b.captures["layer/win_rate"][k], elder.captures["layer/win_rate"][k])
            assert b.captures["layer/win_rate"].steps.tolist() == list(range(13))
            whole = b.captures["layer/win_rate"].read()
            assert whole.shape == (13, 3)
            assert torch.equal(torch.from_numpy(whole[7]), a.captures["layer/win_rate"][7])
            assert b.captures["layer/win_rate"].read([3, 10]).shape == (2, 3)

    def test_states_too(self, run, tmp_path):
        with tracer.record(tmp_path / "t", weights=True):
            train()
        path = branch(tmp_path / "t", tmp_path / "a", at=6, tensors={"0.bias": torch.zeros(3)}, program=train).path
        with tracer.open_trace(tmp_path / "t") as old, tracer.open_trace(path) as new:
            assert torch.equal(new.state(3)["0.weight"], old.state(3)["0.weight"])
            assert not new.state(6)["0.bias"].any()
            states, values = new.weights("0.bias", steps=range(4, 9))
            assert states.tolist() == [4, 5, 6, 7, 8]
            assert (values[1] == old.state(5)["0.bias"].numpy()).all()
            assert (values[2] == 0).all()

    def test_so_does_sql(self, tree):
        run, first, second = tree
        with tracer.open_trace(run) as old, tracer.open_trace(first) as a, tracer.open_trace(second) as b:
            found = b.sql("select step, loss, lr from steps order by step").fetchall()
            expected = [t.record(k) for t, ks in ((old, range(6)), (a, range(6, 9)), (b, range(9, 13))) for k in ks]
            assert found == [(r["step"], r["loss"], r["lr"]) for r in expected]
            assert b.sql("select step, value from metrics where name = 'lr' order by step").fetchall() == [
                (r["step"], r["lr"]) for r in expected
            ]
            sessions = b.sql("select session, min(step), max(step) from steps group by session order by session")
            assert sessions.fetchall() == [(-2, 0, 5), (-1, 6, 8), (0, 9, 12)]
            assert b.sql("select count(*) from steps join sessions using (session)").fetchall() == [(13,)]
            assert b.sql("select count(*) from features where feature = 2").fetchall() == [(13,)]
            assert b.sql("select at_step from branches").fetchall() == [(9,), (6,)]
            over = b.sql(
                "select step, s.lr, p.lr from steps s join parent_steps p using (step) where step > 8"
            ).fetchall()
            assert over == [(k, 0.02, 0.01) for k in range(9, 13)]
            assert "parent_steps" in b.schema()
            assert until(b, "lr > 0.015") == 9
            addenda.write_verdicts(second, [(10, "verified")])
            assert b.sql("select count(*), count(verdict) from steps").fetchall() == [(13, 1)]

    def test_ls_shows_the_tree(self, tree):
        from click.testing import CliRunner

        from apps.cli_read import ls
        from tracer.listing import as_tree
        from tracer.listing import ls as listed

        folder = tree[0].parent
        assert [(d, Path(f["path"]).name) for d, f in as_tree(listed(folder))] == [(0, "t"), (1, "a"), (2, "b")]
        assert [d for d, _ in as_tree([f for f in listed(folder) if f["path"] != str(tree[1])])] == [0, 0]
        lines = CliRunner().invoke(ls, [str(folder)]).output.splitlines()
        assert lines[3].startswith(f"└─ {folder}/a ")
        assert lines[4].startswith(f"   └─ {folder}/b ")
        assert lines[4].rstrip().endswith("branch at 9: optimizer.lr=0.02")

    def test_a_moved_parent_is_found_beside_and_a_lost_one_is_said(self, tree, tmp_path, caplog):
        run, first, _ = tree
        shutil.copytree(first, tmp_path / "x" / "a")
        facts = json.loads((tmp_path / "x" / "a" / "trace.json").read_text())
        facts["parent"]["trace"] = "nowhere/at/all"
        del facts["sum"]
        (tmp_path / "x" / "a" / "trace.json").write_text(json.dumps(facts))
        with tracer.open_trace(tmp_path / "x" / "a") as alone:
            with pytest.raises(MissingDataError, match="put it back"):
                alone.record(3)
            assert alone.sql("select min(step) from steps").fetchall() == [(6,)]
            assert "put it back" in caplog.text
            assert alone.captures["layer/win_rate"].steps[0] == 6
        shutil.copytree(run, tmp_path / "x" / "another name")
        with tracer.open_trace(tmp_path / "x" / "a") as found:
            assert found.record(3)["step"] == 3

    def test_a_circle_is_damage(self, tree, tmp_path):
        shutil.copytree(tree[1], tmp_path / "a")
        facts = json.loads((tmp_path / "a" / "trace.json").read_text())
        facts["parent"]["id"] = facts["id"]
        del facts["sum"]
        (tmp_path / "a" / "trace.json").write_text(json.dumps(facts))
        with tracer.open_trace(tmp_path / "a") as trace, pytest.raises(DamageError, match="forebear"):
            trace.record(3)

    def test_replay_before_the_branch_is_the_parents(self, tree):
        with Session(tree[1], program=train) as session, pytest.raises(StepError, match="parent"):
            session.seek(3)


def spread(step):
    """A vector and a matrix for each step, from what was captured."""
    rate = step.captures["layer/win_rate"]
    return {"spread": rate - rate.mean(), "outer": rate[:, None] * rate, "layer/win_rate": rate * 0, "top": rate.max()}


def test_what_was_found_out_of_a_step_is_not_said_of_the_one_that_stands_for_it_now(run, tmp_path):
    path = tmp_path / "t"
    shutil.copytree(run, path)
    addenda.write_verdicts(path, [(k, "verified") for k in range(20)])
    hindsight(path, spread)
    asked = "select step, verdict, (select count(*) from metrics m where m.step = s.step and name = 'top'), "
    asked += "(select count(*) from captures c where c.step = s.step and key = 'outer') from steps s order by step"
    with tracer.open_trace(path) as trace:
        assert trace.sql(asked).fetchall() == [(k, "verified", 1, 1) for k in range(20)]
    with tracer.record(path, append=True):
        train()
    with tracer.open_trace(path) as trace:
        # It began at state 0 again, and has made each step anew.
        assert trace.sql(asked).fetchall() == [(k, None, 0, 0) for k in range(20)]
        assert len(trace.captures["outer"].steps) == 0
        assert 3 not in trace.captures["outer"]
        with pytest.raises(MissingDataError, match="step 3"):
            trace.captures["outer"][3]
    addenda.write_verdicts(path, [(3, "diverged")])
    hindsight(path, spread, steps=[5])
    with tracer.open_trace(path) as trace:
        assert {row for row in trace.sql(asked).fetchall() if any(row[1:])} == {(3, "diverged", 0, 0), (5, None, 1, 1)}
        assert trace.captures["outer"].steps.tolist() == [5]
        assert torch.equal(trace.captures["outer"][5], torch.from_numpy(trace.captures["outer"].read()[0]))


class TestLateCaptures:
    """Arrays that a hindsight function gave are captures like any other."""

    @pytest.fixture
    def asked(self, run, tmp_path):
        shutil.copytree(run, tmp_path / "t")
        with tracer.open_trace(tmp_path / "t") as trace:
            yield trace, hindsight(trace, spread, steps=range(0, 20, 2))

    def test_they_read_as_recorded_ones_do(self, asked):
        trace, done = asked
        rates = trace.captures["layer/win_rate"]
        found = trace.captures["outer"]
        assert found.steps.tolist() == list(range(0, 20, 2))
        assert (found.shape, found.dtype, len(found)) == ((3, 3), "float32", 10)
        assert torch.equal(found[6], rates[6][:, None] * rates[6])
        assert found.read([6, 2]).shape == (2, 3, 3)
        assert (found.read([6, 2])[1] == found.read()[1]).all()
        assert (6 in found, 7 in found) == (True, False)
        with pytest.raises(MissingDataError, match="step 7"):
            found[7]
        assert {"outer", "spread", "layer/win_rate"} == set(trace.captures)
        assert done.arrays["outer"].shape == (10, 3, 3)

    def test_what_the_run_captured_itself_stays(self, asked):
        trace, done = asked
        assert trace.captures["layer/win_rate"][4].any()
        assert not trace.captures[f"layer/win_rate@{done.digest}"][4].any()

    def test_of_two_versions_the_newest_counts_and_both_are_there(self, asked, tmp_path):
        trace, done = asked
        (tmp_path / "m.py").write_text("def spread(step):\n    return {'outer': step.captures['layer/win_rate'] + 1}\n")
        later = hindsight(trace, f"{tmp_path}/m.py:spread")
        assert trace.captures["outer"].shape == (3,)
        assert trace.captures["outer"][5].min() > 1
        assert trace.captures[f"outer@{done.digest}"].shape == (3, 3)
        assert trace.captures[f"outer@{later.digest}"].steps.tolist() == list(range(20))

    def test_what_the_same_function_says_of_other_steps_is_added(self, asked):
        trace, done = asked
        hindsight(trace, spread, steps=range(3, 6))
        found = trace.captures["outer"]
        assert found.steps.tolist() == [0, 2, 3, 4, 5, *range(6, 20, 2)]
        rates = trace.captures["layer/win_rate"]
        assert (found.read([5, 6]) == torch.stack([rates[k][:, None] * rates[k] for k in (5, 6)]).numpy()).all()
        assert len(trace.captures[f"outer@{done.digest}"]) == 12

    def test_so_does_sql(self, asked, tmp_path):
        trace, done = asked
        (tmp_path / "m.py").write_text("def spread(step):\n    return {'outer': step.captures['layer/win_rate'] + 1}\n")
        later = hindsight(trace, f"{tmp_path}/m.py:spread", steps=[1, 2])
        found = trace.sql(
            "select step, session, dtype, shape, bytes, source from captures where key = 'outer' order by all"
        )
        first = [(k, 0, "float32", [3, 3], 36, done.source) for k in range(0, 20, 2)]
        assert found.fetchall() == sorted([*first, *((k, 0, "float32", [3], 12, later.source) for k in (1, 2))])
        hindsight(trace, f"{tmp_path}/m.py:spread", steps=[2, 3])
        again = trace.sql(f"select step from captures where source = '{later.source}' order by step").fetchall()
        assert again == [(1,), (2,), (3,)]
        counts = trace.sql("select key, count(*) from captures where source = 'recorded' group by key").fetchall()
        assert counts == [("layer/win_rate", 20)]

    def test_conditions_and_other_functions_can_ask_for_them(self, asked):
        trace, done = asked
        low = done.arrays["spread"].min(axis=1).astype(float)
        border = float(sorted(low)[1])
        assert until(trace, f"min(spread) <= {border!r} and top > 0") == 2 * int((low <= border).nonzero()[0][0])
        whole = hindsight(trace, total, steps=[2, 4])
        assert whole.verdicts == {"stored": 2}
        assert whole.scalars["total"][1] == pytest.approx(done.arrays["outer"][2].sum())

    def test_a_branch_has_its_parents(self, asked, tmp_path):
        trace, _ = asked
        done = branch(trace, tmp_path / "b", at=6, steps=2, program=train)
        with done.open() as later:
            assert torch.equal(later.captures["outer"][4], trace.captures["outer"][4])
            assert 6 not in later.captures["outer"]


def total(step):
    return step.captures["outer"].sum()
