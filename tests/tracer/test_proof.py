"""Verdicts kept in the trace: what is proven is said, of the steps that it was said of, and of no others. # B2, C3"""

from __future__ import annotations

import json
import os
import time

import pytest

from tests.tracer.synthetic import make_trace
from tracer import addenda, proof
from tracer.damage import damages
from tracer.trace import open_trace

TODAY = time.strftime("%Y-%m-%d")


def keep(path, steps, kind="verified", **known):
    with open_trace(path) as trace:
        return proof.keep(trace, [(k, kind) for k in steps], **{"torch": "9.9", "way": "verify", **known})


def said(path):
    with open_trace(path) as trace:
        return proof.proof(trace)


@pytest.fixture
def path(tmp_path):
    make_trace(tmp_path / "t", 20, 4, 10)
    return tmp_path / "t"


def test_only_what_was_verified_is_said_to_be(path):
    assert said(path).words == "not verified yet"
    keep(path, range(8))
    assert said(path).words == f"proven in part: 8 of 20 steps, on {TODAY}, torch 9.9"
    assert not said(path).whole
    keep(path, range(8, 20), torch="9.10")
    known = said(path)
    assert known.whole
    assert known.words == f"proven: 20 of 20 steps, on {TODAY}, torch 9.9 and 9.10"
    assert json.loads(json.dumps(known.as_dict()))["untried"] == 0
    assert damages(path) == []


def test_what_diverged_is_named_until_it_is_verified(path):
    keep(path, range(20))
    keep(path, [5, 7], "diverged")
    known = said(path)
    assert (known.verified, known.diverged, known.first_diverged, known.whole) == (18, 2, 5, False)
    assert known.words.startswith("not proven: 18 of 20 steps, 2 diverged, the first is step 5, on ")
    keep(path, [5, 7])
    assert said(path).whole


def test_that_a_step_could_not_be_judged_takes_no_verdict_away(path):
    keep(path, range(10))
    assert keep(path, [3, 4], "unverifiable") is None
    keep(path, [9, 10], "unverifiable")
    known = said(path)
    assert (known.verified, known.unverifiable, known.untried) == (10, 1, 9)
    assert known.words.startswith("proven in part: 10 of 20 steps, 1 unverifiable, on ")


@pytest.mark.parametrize("early", [False, True], ids=["clock", "clock set back"])
def test_a_step_that_was_made_anew_is_not_proven(tmp_path, early):  # S1.3
    path = tmp_path / "t"
    make_trace(path, 20, 4, 10)
    keep(path, range(20))
    assert said(path).whole
    make_trace(tmp_path / "u", 20, 4, 10, sessions=((12, 9),))
    (tmp_path / "u" / "verdicts").mkdir()
    for file in (path / "verdicts").iterdir():
        os.rename(file, tmp_path / "u" / "verdicts" / file.name)
    if early:  # the session that made steps anew began, by its own clock, before the verdict was given
        facts = json.loads((tmp_path / "u" / "trace.json").read_text())
        facts["sessions"][1]["started"] -= 1e6
        facts.pop("sum", None)
        (tmp_path / "u" / "trace.json").write_text(json.dumps(facts))
    known = said(tmp_path / "u")
    assert (known.steps, known.verified, known.untried) == (21, 12, 9)
    keep(tmp_path / "u", [12, 20])
    with open_trace(tmp_path / "u") as trace:
        assert trace.verdicts == dict.fromkeys([*range(13), 20], "verified")


def test_many_files_become_one(path, monkeypatch):
    monkeypatch.setattr(proof, "_MANY", 4)
    monkeypatch.setattr(proof, "_A_WHILE", -1.0)
    for k in range(10):
        keep(path, [k, k + 1], "diverged" if k == 9 else "verified")
    files = [file for file in addenda.files(path) if file.parent.name == "verdicts"]
    assert len(files) <= 4
    assert len(list((path / "verdicts").iterdir())) == 2 * len(files)
    known = said(path)
    assert (known.verified, known.diverged, known.first_diverged) == (9, 2, 9)


def test_a_file_that_was_just_listed_stays_and_its_rows_count_once(path, monkeypatch):
    monkeypatch.setattr(proof, "_MANY", 3)
    for k in range(12):
        keep(path, [k])
    whole = addenda.verdicts(path)
    assert len(whole) < 12 * 12, "rows of files that stay must not be taken over again and again"
    assert said(path).verified == 12


def test_a_damaged_file_is_left_out_and_named(path, caplog):
    keep(path, range(5))
    keep(path, range(5, 9))
    file = sorted((path / "verdicts").glob("*.parquet"))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert said(path).verified == 4
    assert any(file.name in line for line in damages(path))
