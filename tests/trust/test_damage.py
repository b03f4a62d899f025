"""Corruption: whatever byte of whatever file is another, wherever a file ends too early: the reader gives what was recorded,
or says that it is damaged. It never gives other numbers, hangs, or fails in a way of its own. # S0.4, S1.2

A sample in CI; all of it by REWIND_FLIPS=10000, and every byte of a tiny trace by REWIND_EVERY=1 (`make trust`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from replay import hindsight
from tests.tracer.synthetic import make_trace
from tests.trust.keeps_files import keep_files
from tests.trust.opened import opened
from tests.trust.survey import DAMAGED, KEYS, PARTS, TRUE_STEPS, ask, digest, part_of, survey
from tracer import addenda, manifest, open_trace
from tracer.damage import damages
from tracer.errors import DamageError, RewindError
from tracer.repair import repair
from tracer.sealer import TailSealer, seal
from tracer.tail import TailWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FLIPS = int(os.environ.get("REWIND_FLIPS", "60"))
EVERY = int(os.environ.get("REWIND_EVERY", "1499"))
"""Of the tiny trace, so many bytes lie between two that are flipped."""
SEED = int(os.environ.get("REWIND_SEED", "0"))
TINY_STEPS = 4


def sealed(path: Path) -> None:
    make_trace(path, TRUE_STEPS, 3, 70, roll=8, grads=True, nan_at=7, per_epoch=10)


def half_sealed(path: Path) -> None:
    """Two segments are sealed, the rest lies in a tail; a second session supersedes the end.

    Four features: tensors are packed at multiples of eight bytes, and what lies between them in a tail is nobody's.
    """
    make_trace(path, 18, 4, 70, roll=8, grads=True, sessions=((14, 6),), seal=False, per_epoch=10)
    TailSealer(path).seal(0, rolled_only=True)


def annotated(path: Path) -> None:
    make_trace(path, TRUE_STEPS, 3, 70, roll=8, grads=True, per_epoch=10)
    hindsight(path, norm)
    addenda.write_verdicts(path, [(k, "verified") for k in range(TRUE_STEPS)])
    keep_files(path, path.with_name(f"{path.name} works here"))
    seal(path)


def norm(step):
    return {"norm": step.step / 3, "late/row": step.state["encoder.weight"][0] * 2}


TRACES = {"sealed": sealed, "half sealed": half_sealed, "annotated": annotated}


def tiny(path: Path) -> None:
    """All that a trace may have, and as little of each as can be: one segment, a tail, two sessions."""
    make_trace(path, 3, 2, 2, roll=2, grads=True, sessions=((2, 2),), seal=False, per_epoch=2)
    TailSealer(path).seal(0, rolled_only=True)


def judge(found: dict, truth: dict) -> list[str]:
    """What is wrong with answers: other numbers, or rows that are gone without a word. Damage that is named is none."""
    truth = {question: true for question, true in truth.items() if question in found or part_of(question) is None}
    wrong = []
    said = [v for v in found.values() if isinstance(v, str) and v.startswith(DAMAGED)]
    if found["open"].startswith(DAMAGED):
        return []
    named = bool(said or found["damage"])
    for question, true in truth.items():
        answer = found[question]
        if answer == true or question in ("damage", "sums") or (isinstance(answer, str) and answer.startswith(DAMAGED)):
            continue
        if isinstance(answer, set) and named and answer <= true | {unjudged(row) for row in true}:
            continue
        if found["damage"] and (question in OF_ALL or answer in NOTHING):
            continue  # fewer steps, and it is said which are missing; each one's numbers are asked for by themselves
        wrong.append(f"{question}: {answer} instead of {true}")
    return wrong


def unjudged(row: str) -> str:
    """The row of a view as it is where the verdict on its step is not known."""
    return json.dumps([column for column in json.loads(row) if column[0] != "verdict"])


OF_ALL = ("listed", *(f"series {key}" for key in KEYS), "weights", "view sessions", "view epochs")
"""Questions over all steps at once."""
NOTHING = (digest("none"), digest(None))
"""Nothing was stored, is the answer."""


@pytest.fixture(scope="module", params=TRACES, ids=lambda name: name.replace(" ", "_"))
def whole(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "t"
    TRACES[request.param](path)
    return path, survey(path)


@pytest.fixture(scope="module")
def asked(whole):
    path, _ = whole
    return readers(path)


def readers(path: Path, steps: int = TRUE_STEPS) -> Callable[[Path], list[str]]:
    """Which parts of a survey a file's bytes have a say in: those that open it. What is kept of the small files between two
    that open a trace is known by their times: of these all parts are asked."""
    opens = {part: opened(path, lambda part=part: survey(path, [part], steps)) for part in PARTS}

    def asked(name: Path) -> list[str]:
        everywhere = name.parts[0] in ("tail", "trace.json") or name.parent == Path("metrics")
        return [part for part in PARTS if everywhere or opens[part] is None or name in opens[part] or part == "sums"]

    return asked


@pytest.fixture(autouse=True)
def quiet():
    """Damage is logged where it is met: thousands of lines of it say nothing."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def files_of(path: Path) -> list[Path]:
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file() and file.name != "seal.lock")


def wrongs_of(
    path: Path, truth: dict, name: Path, data: bytes, what: str, parts: Iterable[str] = PARTS, steps: int = TRUE_STEPS
) -> list[str]:
    """What is answered wrongly where the file `name` holds `data`, and whether its sums tell."""
    target = path / name
    before = target.read_bytes()
    target.write_bytes(data)
    try:
        found = survey(path, parts, steps)
        unsaid = data != before and not found.get("sums", [DAMAGED]) and not may_be_silent(name, before)
        wrong = judge(found, truth) + ["its sums say nothing"] * unsaid
        return [f"{what}: {line[:300]}" for line in wrong]
    except Exception as error:  # noqa: BLE001  each that fails in a way of its own is named; the others go on
        return [f"{what}: {type(error).__name__}: {error}"]
    finally:
        target.write_bytes(before)


def may_be_silent(name: Path, before: bytes) -> bool:
    """Whether some of the file's bytes mean nothing: how far the run was; a group of plain Zarr; a shard that was replaced by a
    longer one still has its old index; DuckDB's blocks that nothing uses."""
    shard = name.parts[0] == "tensors.zarr" and "c" in name.parts
    return name.name in ("status.json", "index.duckdb") or shard or (name.name == "zarr.json" and b'"group"' in before)


def test_the_survey_finds_nothing_wrong_with_a_whole_trace(whole):
    path, truth = whole
    assert truth["damage"] == []
    assert truth["sums"] == []
    assert judge(survey(path), truth) == []
    assert not any(isinstance(v, str) and v.startswith(DAMAGED) for k, v in truth.items() if k.startswith("batch"))


def test_a_flipped_byte_never_gives_other_numbers(whole, asked):
    path, truth = whole
    dice = random.Random(SEED)
    names = files_of(path)
    wrong = []
    for _ in range(max(1, FLIPS // len(TRACES))):
        name = dice.choice(names)
        data = bytearray((path / name).read_bytes())
        if not data:
            continue
        place = dice.randrange(len(data))
        data[place] ^= 1 << dice.randrange(8)
        parts = PARTS if dice.random() < 1 / 16 else asked(name)
        wrong += wrongs_of(path, truth, name, bytes(data), f"{name} byte {place}", parts)
    assert wrong == []


def test_what_is_asked_of_a_file_is_what_opens_it(whole, asked):
    """A flip in a file is not asked of those that never open it; each part has files that it does open."""
    path, _ = whole
    names = files_of(path)
    assert {part for name in names for part in asked(name)} == set(PARTS)
    index, chunk = Path("index.duckdb"), Path("tensors.zarr/params/c/0/0")
    assert asked(chunk) == (["steps", "sums"] if sys.platform == "linux" else [*PARTS])
    assert index not in names or asked(index) == (["views", "sums"] if sys.platform == "linux" else [*PARTS])


def test_no_byte_of_a_tiny_trace_gives_other_numbers(tmp_path):
    """Every EVERY-th byte of it, one bit of each. Its views, which take longest and rest on the same records, at one of eight."""
    path = tmp_path / "t"
    tiny(path)
    truth, asked = survey(path, steps=TINY_STEPS), readers(path, TINY_STEPS)
    dice = random.Random(SEED + 4)
    wrong = []
    places = [(name, place) for name in files_of(path) for place in range((path / name).stat().st_size)]
    for name, place in places[dice.randrange(EVERY) :: EVERY]:
        data = bytearray((path / name).read_bytes())
        data[place] ^= 1 << dice.randrange(8)
        parts = [part for part in asked(name) if part != "views" or dice.random() < 1 / 8]
        wrong += wrongs_of(path, truth, name, bytes(data), f"{name} byte {place}", parts, TINY_STEPS)
    assert truth["sums"] == []
    assert wrong == []


def test_a_file_that_ends_too_early_never_gives_other_numbers(whole):
    path, truth = whole
    dice = random.Random(SEED + 1)
    names = files_of(path)
    wrong = []
    for _ in range(max(1, FLIPS // 3 // len(TRACES))):
        name = dice.choice(names)
        data = (path / name).read_bytes()
        size = dice.choice([0, dice.randrange(len(data) + 1), max(0, len(data) - 1)])
        wrong += wrongs_of(path, truth, name, data[:size], f"{name} cut to {size} of {len(data)}")
    assert wrong == []


def test_a_file_that_is_gone_never_gives_other_numbers(whole, tmp_path):
    path, truth = whole
    dice = random.Random(SEED + 2)
    names = files_of(path)
    found = []
    for name in dice.sample(names, min(len(names), max(1, FLIPS // 6 // len(TRACES)))):
        copy = Path(shutil.copytree(path, tmp_path / "copy"))
        (copy / name).unlink()
        found += [f"{name}: {wrong[:300]}" for wrong in judge(survey(copy), relocated(truth, path, copy))]
        shutil.rmtree(copy)
    assert found == []


@pytest.mark.parametrize("close", [True, False], ids=["over", "killed"])
@pytest.mark.parametrize("kind", ["damaged", "gone"])
def test_what_a_later_session_made_anew_is_not_given_as_it_was_before(tmp_path, kind, close):
    """Its first segment cannot be read: of these steps there is nothing, not what the elder session had there."""
    path = tmp_path / "t"
    make_trace(path, 3, 1, 2, roll=2 if close else 128, seal=False, sessions=((2, 2),), close=close)
    tail = path / "tail" / "0001-000000.log"
    if kind == "gone":
        tail.unlink()
    else:
        tail.write_bytes(tail.read_bytes()[:20] + b"?" + tail.read_bytes()[21:])
    with open_trace(path) as trace:
        if kind == "gone" and not close:
            assert len(trace) == 3, "it had passed no step, for all that can be known"
            return
        assert trace.damage()
        assert trace.superseded == {0: 2}
        with pytest.raises(RewindError):
            trace.record(2)


def test_a_sum_whose_name_is_damaged_is_missed(tmp_path):
    """What older versions wrote without a sum is read; what has one under a name that is none is damaged."""
    path = tmp_path / "t"
    annotated(path)
    said = {n: (path / n).read_bytes() for n in files_of(path) if n.suffix == ".json"}
    own = [n for n, data in said.items() if b'"sum"' in data and not may_be_silent(n, data)]
    tried = 0
    for name in {(n.parts[0], n.name == "zarr.json"): n for n in own}.values():
        before = said[name]
        place = before.rindex(b'"sum"') + 1
        (path / name).write_bytes(before[:place] + b"rum" + before[place + 3 :])
        assert survey(path, ["sums"])["open"].startswith(DAMAGED) or survey(path, ["sums"])["sums"], name
        (path / name).write_bytes(before)
        tried += 1
    assert tried >= 4


def relocated(truth: dict, path: Path, copy: Path) -> dict:
    return {k: v for k, v in truth.items() if k != "listed"}


@pytest.mark.parametrize("kind", ["flipped", "cut", "gone"])
def test_checksums_tell_without_running_anything(tmp_path, kind, capsys):
    """`rewind verify --checksums` names each file that it is done to; metrics/ and tensors.zarr as much as the tail."""
    from apps.cli import run

    whole = tmp_path / "whole"
    half_sealed(whole)
    hindsight(whole, norm)
    assert run(["verify", str(whole), "--checksums"]) == 0
    dice = random.Random(SEED + 3)
    # What the figures do not rest on: how far the run was, folders of plain Zarr.
    names = [n for n in files_of(whole) if n.name != "status.json" and (kind == "gone" or not is_group(whole / n))]
    for name in dice.sample(names, 8):
        copy = Path(shutil.copytree(whole, tmp_path / "copy"))
        data = (copy / name).read_bytes()
        if kind == "gone":
            (copy / name).unlink()
        else:
            place = dice.randrange(len(data))
            other = data[:place] if kind == "cut" else data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :]
            (copy / name).write_bytes(other)
        capsys.readouterr()
        code = run(["verify", str(copy), "--checksums"])
        if code == 0 and kind == "flipped" and "tensors.zarr" in name.parts:
            # Where a shard was replaced by a longer one its old index stays, and nobody reads it.
            assert judge(survey(copy), relocated(survey(whole), whole, copy)) == []
            shutil.rmtree(copy)
            continue
        assert code in (1, 2), str(name)
        said = "".join(capsys.readouterr())
        assert any(word in said for word in ("damage", "missing", "is cut short", "no trace")), said
        shutil.rmtree(copy)


def is_group(file: Path) -> bool:
    return file.name == "zarr.json" and b'"group"' in file.read_bytes()


def losses(path: Path) -> list[str]:
    """What `rewind verify --checksums` says; readers, who look at no tensor, say some of it."""
    with open_trace(path) as trace:
        assert set(trace.damage()) <= set(damages(path))
    return damages(path)


def test_every_file_that_is_gone_is_named(tmp_path):
    """A file of each kind by itself: its name is said, or what is lost with it."""
    whole = tmp_path / "whole"
    annotated(whole)
    assert losses(whole) == []
    names = [n for n in files_of(whole) if n.name not in ("status.json", "index.duckdb", "trace.json")]
    kinds = {
        (n.parts[0], n.parts[1:2] * (n.parts[0] != "metrics"), "c" in n.parts, tuple(n.suffixes)): n for n in names
    }
    assert len({n.parts[0] for n in kinds.values()}) == 5
    assert len(kinds) > 25
    for name in kinds.values():
        copy = Path(shutil.copytree(whole, tmp_path / "copy", copy_function=os.link))
        (copy / name).unlink()
        found = losses(copy)
        commit = name.parts[0] == "metrics" and name.suffix == ".json"
        what = "missing" if commit or "c" in name.parts else str(name.parent if name.name == "zarr.json" else name)
        assert any(what in line for line in found), (name, found)
        shutil.rmtree(copy)


def test_all_that_was_found_out_later_may_be_gone_and_is_named(tmp_path, caplog):
    path = tmp_path / "t"
    annotated(path)
    shutil.rmtree(path / "hindsight")
    shutil.rmtree(path / "verdicts")
    found = " ".join(losses(path))
    assert "hindsight metric 'norm' is lost: ask the function again" in found
    assert "its verdicts are lost: verify the steps again" in found
    logging.disable(logging.NOTSET)
    with open_trace(path) as trace:
        assert trace.sql("select count(*) from metrics where name = 'norm'").fetchall() == [(0,)]
    assert "is missing: the hindsight metric 'norm' is lost" in caplog.text
    assert "is missing: its verdicts are lost" in caplog.text
    assert [line for line in repair(path) if "hindsight metric 'norm' is lost" in line]
    assert losses(path) == repair(path) == [], "what is lost and was said is not looked for any more"


def test_late_arrays_of_which_a_chunk_is_gone_are_not_filled_up(tmp_path):
    path = tmp_path / "t"
    annotated(path)
    chunk = max((path / "hindsight").rglob("late/row/c/*/*"))
    chunk.unlink()
    with open_trace(path) as trace, pytest.raises(DamageError, match="missing: ask the function again"):
        trace.captures["late/row"][3]


def test_a_late_group_of_plain_zarr_is_damaged_in_words(tmp_path):
    """zarr itself reads it, and has errors of its own for what it finds there."""
    path = tmp_path / "t"
    annotated(path)
    group = next(file for file in (path / "hindsight").glob("*.zarr/zarr.json"))
    whole = group.read_bytes()
    assert b'"group"' in whole
    with open_trace(path) as trace:
        true = digest(trace.captures["late/row"][3])
    answers = set()
    for place in range(len(whole)):
        group.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with open_trace(path) as trace:
            answers.add(ask(lambda: trace.captures["late/row"][3])[: len(DAMAGED)])
    assert answers <= {DAMAGED, true[: len(DAMAGED)]}
    assert len(answers) == 2


def test_an_older_trace_lists_nothing_and_opens(tmp_path):
    path = tmp_path / "t"
    annotated(path)
    manifest.amend(path, lambda facts: replace(facts, addenda=()))
    assert losses(path) == []
    with open_trace(path) as trace:
        assert trace.sql("select count(*) from metrics where name = 'norm'").fetchall() == [(TRUE_STEPS,)]
    shutil.rmtree(path / "hindsight")
    assert losses(path) == []


def test_who_is_killed_while_a_file_is_begun_loses_one_step_and_no_more(tmp_path):
    """The step before the file is written down after it was begun: no damage, and nothing of the elder session is hidden."""
    path = tmp_path / "t"
    make_trace(path, 6, 1, 2, roll=2, seal=False, sessions=((4, 1),), close=False)
    tail = path / "tail" / "0001-000000.log"
    begun = tail.with_name("0001-000001.log")
    tail.unlink()
    writer = TailWriter(begun)
    writer.append({"kind": "begin", "session": 1, "seq": 1, "first_step": 5, "first_row": 256, "time": 0.0})
    writer.close()
    with open_trace(path) as trace:
        assert trace.steps == 6, "the step that was lost had superseded nothing"
        assert trace.damage() == []


def test_the_last_segment_of_a_session_that_crashed_is_missed(tmp_path):
    path = tmp_path / "t"
    make_trace(path, TRUE_STEPS, 3, 70, roll=8, close=False, per_epoch=10)
    repair(path)
    with open_trace(path) as trace:
        assert (trace.sessions[0].status, trace.sessions[0].last_segment) == ("crashed", 2)
    assert losses(path) == []
    for file in (path / "metrics").glob("0000-000002*"):
        file.unlink()
    assert any("crashed in segment 2, which is missing: what came after step 15" in line for line in losses(path))
