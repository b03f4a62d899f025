"""files/ of a trace, what the program read and wrote: each byte that is another and each file that is gone is named. # S0.4"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from apps.cli import run
from replay.file_view import FileView
from tests.tracer.synthetic import make_trace
from tests.trust.keeps_files import HEARD, keep_files
from tests.trust.survey import survey
from tracer import beside, files, manifest, open_trace, stdin
from tracer.damage import damages
from tracer.repair import repair

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", params=["ended", "killed"])
def kept(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "t"
    make_trace(path, 3, 2, 2)
    position = keep_files(path, path.with_name("work"), ended=request.param == "ended")
    return path, position


def lines(path: Path, position: int) -> list[str]:
    facts = manifest.read(path).sessions[0]
    return [*beside.missing(path, facts), *beside.damages(path, facts, position)]


def test_nothing_is_said_of_what_is_whole(kept):
    path, position = kept
    assert position == 5
    assert lines(path, position) == damages(path) == []
    assert stdin.read(path, 0) == b"".join(HEARD)
    assert len([*(path / "files").iterdir()]) == 4


def test_every_byte_of_it_is_held_against_a_sum(kept):
    path, position = kept
    dice = random.Random(0)
    unsaid = []
    for file in sorted((path / "files").iterdir()):
        whole = file.read_bytes()
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << dice.randrange(8)]) + whole[place + 1 :])
            if not any(str(file) in line for line in lines(path, position)):
                unsaid.append(f"{file.name} byte {place}")
        for size in {*range(0, len(whole), 7), len(whole) - 1}:
            file.write_bytes(whole[:size])
            # A log that was torn where its process was killed, past what a keyframe knows of, is whole.
            torn = manifest.read(path).sessions[0].status == "crashed" and file.suffix == ".jsonl"
            torn = torn and len(files.events(path, 0)[1]) >= position
            if not torn and not any(str(file) in line for line in lines(path, position)):
                unsaid.append(f"{file.name} cut to {size}")
        file.write_bytes(whole)
    assert unsaid == []


def test_every_file_of_it_that_is_gone_is_named_with_what_is_lost(kept):
    path, position = kept
    said = {}
    for file in sorted((path / "files").iterdir()):
        whole = file.read_bytes()
        file.unlink()
        own = [line for line in lines(path, position) if str(file) in line]
        assert len(own) == 1, (file, own)
        said[file.suffix] = own[0]
        file.write_bytes(whole)
    assert re.search("is missing: which files the run read", said[".jsonl"])
    assert re.search("is missing: what the program read from standard input is lost", said[".stdin"])
    assert re.search("is missing: a replay has the environment variables of its own shell", said[".json"])
    assert re.search("is missing: what the run read of .*notes.txt is lost", said[""])


def test_an_older_trace_names_no_files_and_is_whole(kept):
    path, position = kept
    before = (path / "trace.json").read_bytes()
    manifest.amend(path, lambda facts: facts.with_session(replace(facts.sessions[0], files=None)))
    assert lines(path, position) == []
    raw = json.loads((path / "trace.json").read_bytes())
    for session in raw["sessions"]:
        del session["files"]
    del raw["sum"]
    (path / "trace.json").write_text(json.dumps(raw))
    assert damages(path) == []
    (path / "trace.json").write_bytes(before)


def test_the_verbs_name_it(kept, capsys):
    path, _ = kept
    place = files.stdin_file(path, 0)
    whole = place.read_bytes()
    place.write_bytes(b"T" + whole[1:])
    assert run(["verify", str(path), "--checksums"]) == 1
    assert str(place) in capsys.readouterr().out
    assert any(str(place) in line for line in repair(path))
    assert survey(path, ["files"])["files"].startswith("damaged")
    place.write_bytes(whole)
    variables = path / "files" / "000.environment.json"
    before = variables.read_bytes()
    variables.unlink()
    capsys.readouterr()
    assert run(["info", str(path)]) == 0
    assert "environment.json is missing" in capsys.readouterr().out
    variables.write_bytes(before)


def test_a_log_that_somebody_made_anew_is_not_followed(kept):
    """Where the session ended its log is under the mark: other bytes are not handed to the program in a file's place."""
    path, _ = kept
    ended = manifest.read(path).sessions[0].status == "finished"
    log = files.log_file(path, 0)
    whole = log.read_bytes()
    with open_trace(path) as trace:
        view = FileView(trace, 0)
        (notes,) = view.paths
        assert view.doubts == []
        log.write_bytes(whole.replace(b'["end"', files._line(["r", notes, True, "0" * 64, None]) + b'["end"'))
        forged = FileView(trace, 0)
        assert bool(forged.paths) != ended
        assert bool(forged.doubts) == ended
    log.write_bytes(whole)
