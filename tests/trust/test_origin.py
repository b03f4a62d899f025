"""Only what this user recorded on this machine is run unasked: a mark that nobody else can make says so. # B8, S4"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import tracer
from apps import trust
from replay import Session, branch
from tests.tracer.training import train, train_without_loader
from tracer import manifest, origin, segments
from tracer.errors import UsageError
from tracer.manifest import Parent
from tracer.repair import repair


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "rewind" / "key"


@pytest.fixture
def run(unsealed, tmp_path):
    with tracer.record(tmp_path / "t"):
        train(epochs=1)
    return tmp_path / "t"


def asks(path: Path) -> bool:
    """Whether a verb that runs the program of the trace at `path` asks first."""
    try:
        trust.check(path)
    except UsageError as error:
        return "--trust" in str(error) and "\n" not in str(error)
    return False


def edit(path: Path, change) -> None:
    """As somebody would who knows the format: its sum is right."""
    raw = json.loads((path / "trace.json").read_text())
    raw.pop("sum")
    change(raw)
    (path / "trace.json").write_bytes(segments.with_sum(raw, indent=1))
    manifest.read(path)


def test_one_s_own_trace_runs_unasked_also_copied_repaired_and_renamed(run, tmp_path):
    assert not asks(run)
    repair(run)
    assert not asks(run)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert not asks(copy)
    copy.rename(tmp_path / "other")
    assert not asks(tmp_path / "other")


def test_so_do_a_resumed_run_and_a_branch(run, tmp_path):
    with tracer.record(run, append=True):
        train_without_loader(3)
    assert len(manifest.read(run).sessions) == 2
    assert not asks(run)
    with tracer.record(tmp_path / "p", detail="replay"):
        train(epochs=1)
    branch(tmp_path / "p", tmp_path / "b", at=2, program=lambda: train(epochs=1))
    assert not asks(tmp_path / "b")


CHANGES = {
    "another program": lambda raw: raw["program"].update(path="/tmp/other.py"),
    "another module": lambda raw: raw["program"].update(kind="module", module="evil"),
    "another argument": lambda raw: raw["program"]["argv"].append("--evil"),
    "another argument of a session": lambda raw: raw["sessions"][0]["argv"].append("--evil"),
    "another folder": lambda raw: raw["program"].update(cwd="/tmp"),
    "another source": lambda raw: raw["program"]["sources"].update(
        dict.fromkeys(raw["program"]["sources"], "source/x_y")
    ),
    "one source more": lambda raw: raw["program"]["sources"].update({"/usr/lib/os.py": "source/os.py"}),
    "a variable": lambda raw: raw["environment"].setdefault("env", {}).update(LD_PRELOAD="/tmp/evil.so"),
    "another trace's name": lambda raw: raw.update(id="0" * 32),
    "a session more": lambda raw: raw["sessions"].append({**raw["sessions"][0], "session": 7, "argv": ["--evil"]}),
    "a parent": lambda raw: raw.update(parent={"trace": "/tmp/x", "id": "1", "at_step": 0, "change": {}}),
    "the host alone": lambda raw: [raw.update(origin=None), raw["sessions"][0].update(host=socket.gethostname())],
    "another file's sum": lambda raw: raw["sessions"][0].update(files={"000.jsonl": "0" * 64}),
    "no sums of files": lambda raw: raw["sessions"][0].update(files=None),
    "a guessed mark": lambda raw: raw.update(origin="0" * 64),
    "a mark of another kind": lambda raw: raw.update(origin=["0"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_somebody_else_changed_is_asked_about(run, name):
    edit(run, CHANGES[name])
    assert asks(run)


def test_a_source_that_was_changed_is_not_run(run):
    from tracer.errors import DamageError
    from tracer.past import Past

    with tracer.open_trace(run) as trace:
        place, name = next(iter(trace.manifest.program.sources.items()))
        (run / name).write_text("import os")
        with pytest.raises(DamageError):
            Past(trace).source(place)


def test_a_session_of_one_s_own_makes_no_stranger_s_trace_one_s_own(run):
    edit(run, CHANGES["another argument"])
    with tracer.record(run, append=True):
        train_without_loader(3)
    assert asks(run)


def test_what_somebody_changes_while_it_is_recorded_is_asked_about(unsealed, tmp_path):
    def each(step, model, loss):
        if step == 2:
            edit(tmp_path / "t", CHANGES["a session more"])

    with tracer.record(tmp_path / "t"):
        train(epochs=1, each=each)
    assert asks(tmp_path / "t")


def test_a_branch_of_a_stranger_s_trace_asks_as_its_parent_does(unsealed, tmp_path):
    with tracer.record(tmp_path / "p", detail="replay"):
        train(epochs=1)
    edit(tmp_path / "p", CHANGES["a guessed mark"])
    branch(tmp_path / "p", tmp_path / "b", at=2, program=lambda: train(epochs=1))
    assert asks(tmp_path / "b")


def test_an_old_trace_asks(run):
    edit(run, lambda raw: raw.pop("origin"))
    assert asks(run)
    trust.check(run, trust=True)


class TestKey:
    def test_only_its_owner_can_read_it(self, run, state):
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
        assert stat.S_IMODE(state.parent.stat().st_mode) == 0o700
        assert len(state.read_bytes()) == 32
        assert list(state.parent.iterdir()) == [state]

    def test_it_stays_the_same(self, run, state):
        key = state.read_bytes()
        origin.signed(manifest.read(run))
        assert state.read_bytes() == key

    @pytest.mark.parametrize("spoil", ["readable", "short", "link", "gone"])
    def test_one_that_others_could_have_made_proves_nothing(self, run, state, spoil):
        key = state.read_bytes()
        if spoil == "readable":
            state.chmod(0o644)
        elif spoil == "short":
            state.write_bytes(key[:-1])
        elif spoil == "link":
            state.rename(state.with_name("elsewhere"))
            state.symlink_to(state.with_name("elsewhere"))
        else:
            state.unlink()
        facts = manifest.read(run)
        assert not origin.is_ours(facts)
        assert origin.is_ours(origin.signed(facts)), "a new key was made"
        assert not origin.is_ours(facts)
        assert state.read_bytes() != key

    def test_without_a_home_it_is_recorded_all_the_same(self, unsealed, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
        with tracer.record(tmp_path / "t"):
            train(epochs=1)
        assert manifest.read(tmp_path / "t").origin is None
        assert asks(tmp_path / "t")


def test_a_state_that_was_not_stored_does_not_run_a_stranger_s_program(unsealed, tmp_path):
    with tracer.record(tmp_path / "t", weights=False):
        model = train(epochs=1)
    branch(tmp_path / "t", tmp_path / "b", at=3, program=lambda: train(epochs=1))
    for path in (tmp_path / "t", tmp_path / "b"):
        edit(path, lambda raw: raw.update(origin=None))
        with (
            tracer.open_trace(path) as trace,
            pytest.raises(UsageError, match=r"state 2 was not stored.*replay\.Session"),
        ):
            trace.state(2)
    # To seek it by name is to say that it may run; so is --trust, for the run that it branched off, too.
    with Session(tmp_path / "t", program=lambda: train(epochs=1)) as session:
        assert session.seek(5).state["weight"].equal(model.weight.detach())
    trust.check(tmp_path / "b", trust=True)
    for path in (tmp_path / "t", tmp_path / "b"):
        assert origin.may_run(path, manifest.read(path))
    assert not origin.may_run(tmp_path / "other", manifest.read(path))


def test_the_mark_rests_on_every_fact_that_is_run(run):
    facts = manifest.read(run)
    parent = Parent("/x", "1", 0, {})
    others = [
        replace(facts, id="x"),
        replace(facts, parent=parent),
        replace(facts, program=replace(facts.program, argv=("a",))),
        replace(facts, environment={}),
    ]
    marks = {origin.signed(each).origin for each in (facts, *others)}
    assert len(marks) == 5
    assert os.path.exists(origin.key_file())
