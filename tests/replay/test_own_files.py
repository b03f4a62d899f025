"""A replay sees files as the recorded run saw them, and writes none of the user's, not by native code either (C3, B2)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tracer
from replay import Session, branch, fence, verify
from tracer import files, stdin

HOUSE = Path(__file__).parents[2]
PROGRAM = HOUSE / "tests/programs/own_files.py"
LOOP = """
    import torch
    from torch import nn
    torch.manual_seed(3)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for i in range(12):
        loss = (model(torch.randn(8, 4)) ** 2).mean() * FACTOR
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def program(folder, before, each="", factor="1.0"):
    """A small loop with `before` and, in each step, `each`."""
    loop = textwrap.dedent(LOOP).replace("FACTOR", factor)
    text = textwrap.dedent(before) + loop + textwrap.indent(textwrap.dedent(each), "    ")
    script = folder / "train.py"
    script.write_text(text)
    return script


def contents(folder):
    """Every file of the user's, with its content and time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".trace" not in str(path):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    return found


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_two_runs_of_a_program_that_resumes(scribe, home):
    first = scribe.record(home / "1.trace", PROGRAM)
    second = scribe.record(home / "2.trace", PROGRAM)
    before = contents(home)
    assert verify(second).verified
    assert verify(first).verified, "the files are the second run's now"
    with Session(first) as session:
        for k in (21, 4, 13, 9):
            session.seek(k)
            assert [v.kind for v in session.run(3)] == ["verified"] * 3, k
    assert contents(home) == before


EVALUATES = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader
torch.manual_seed(3)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
train, test = DataLoader(torch.randn(12, 4), batch_size=4), DataLoader(torch.randn(8, 4), batch_size=4)
for epoch in range(3):
    for x in train:
        loss = (model(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        print(sum((model(x) ** 2).mean().item() for x in test))
    if "replay.engine" in sys.modules:
        raise PermissionError("refused")
"""


def test_a_program_that_raises_between_epochs_is_held_in_its_loop(scribe, home):
    """Told to stay in its loop, it gave the loop that evaluates the same batch without end; that one is left."""
    script = home / "train.py"
    script.write_text(EVALUATES)
    trace = scribe.record(home / "1.trace", script)
    report = verify(trace)
    assert (report.verified, report.steps) == (True, 9)


def test_what_was_read_and_is_lost_is_named(scribe, home):
    (home / "factor.txt").write_text("1.5")
    script = program(home, "", factor='float(open("factor.txt").read())')
    trace = scribe.record(home / "1.trace", script)
    assert verify(trace).verified
    (home / "factor.txt").write_text("2.5")
    found = verify(trace).first_divergence
    assert found.step == 0
    assert "factor.txt" in found.cause


def test_a_file_that_is_read_through_a_link_is_not_doubted(scribe, home):
    """Data sets often lie behind a link: its own size and time say nothing of what is read."""
    (home / "real.txt").write_text("1.5")
    (home / "link.txt").symlink_to("real.txt")
    before = "factor = float(open('link.txt').read()) + int.from_bytes(__import__('os').urandom(4), 'big')"
    report = verify(scribe.record(home / "t.trace", program(home, before, factor="factor")))
    assert report.first_divergence is not None
    assert "link.txt" not in (report.first_divergence.cause or "")


def test_what_the_run_wrote_over_is_there_again(scribe, home):
    (home / "factor.txt").write_text("1.5")
    before = "factor = float(open('factor.txt').read())\nopen('factor.txt', 'w').write(str(factor * 2))\n"
    trace = scribe.record(home / "1.trace", program(home, before, factor="factor"))
    assert (home / "factor.txt").read_text() == "3.0"
    assert verify(trace).verified
    kept = next(file for file in (trace / "files").iterdir() if file.read_bytes() == b"1.5")
    kept.write_text("1.6")
    cause = verify(trace).first_divergence.cause
    assert (
        f"factor.txt: it is read as it is now; what the run read (files/{kept.name} of the trace) is damaged" in cause
    )


def test_a_database_is_not_written_to(scribe, home):
    before = """
        import sqlite3
        db = sqlite3.connect("runs.db")
        db.execute("create table if not exists runs (loss)")
        (count,) = db.execute("select count(*) from runs").fetchone()
    """
    each = 'db.execute("insert into runs values (?)", (loss.item(),))\ndb.commit()'
    trace = scribe.record(home / "1.trace", program(home, before, each, factor="(1 + count)"))
    known = contents(home)
    assert verify(trace).verified
    assert contents(home) == known


@pytest.mark.skipif(fence.version() < 2, reason="this kernel has no Landlock")
@pytest.mark.parametrize("empty", [False, True], ids=["", "empty_cache"])
def test_child_processes_and_native_code_are_refused(scribe, home, monkeypatch, empty):
    if empty:  # Around an empty folder of the compiler's everything could be written.
        (home.parent / "cache").mkdir()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home.parent / "cache"))
    each = 'import subprocess\nsubprocess.run(["sh", "-c", "echo >> lines.txt"], check=False)'
    trace = scribe.record(home / "1.trace", program(home, "", each))
    known = contents(home)
    assert verify(trace).verified
    assert contents(home) == known


@pytest.mark.skipif(fence.version() < 2, reason="this kernel has no Landlock")
def test_inside_the_fence(tmp_path):
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    for folder in (scratch / "a", scratch / "b", outside):
        folder.mkdir(parents=True)
    (outside / "old").write_text("old")
    code = f"""
        import os
        from pathlib import Path
        from replay import fence
        assert fence.put_up(Path({str(scratch)!r}), [{str(outside / "branch")!r}])
        refused = []
        for act in (
            lambda: open({str(outside.parent / "new")!r}, "w"),
            lambda: os.rename({str(scratch / "a")!r}, {str(tmp_path / "c")!r}),
        ):
            try:
                act()
            except OSError as error:
                refused.append(type(error).__name__)
        open({str(scratch / "a/x")!r}, "w").close()
        os.rename({str(scratch / "a/x")!r}, {str(scratch / "b/x")!r})
        os.mkdir({str(outside / "branch")!r})
        open(os.devnull, "w").close()
        print(refused)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, cwd=HOUSE, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("['PermissionError', 'PermissionError']", "")


def test_the_log_ends_at_a_torn_line(scribe, home):
    trace = scribe.record(home / "1.trace", PROGRAM)
    log = trace / "files" / "000.jsonl"
    whole = files.events(trace, 0)
    assert whole[2] is not None
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:8]) + lines[8][:-5])
    begun, events, last = files.events(trace, 0)
    assert (begun, events, last) == (whole[0], whole[1][:7], None)
    damaged = json.dumps(whole[1][0]).encode() + b"\t0123456789abcdef\n"
    log.write_bytes(lines[0] + damaged + b"".join(lines[2:]))
    assert files.events(trace, 0)[1] == []


def test_content_that_is_not_what_it_was_is_none(scribe, home):
    trace = scribe.record(home / "1.trace", PROGRAM)
    names = [event[3] for event in files.events(trace, 0)[1] if event[0] == "r"]
    assert names
    place = files.content(trace, names[0])
    place.write_bytes(b"?" + place.read_bytes()[1:])
    assert files.content(trace, names[0]) is None
    assert files.content(trace, "../trace.json") is None


def test_a_recording_tells_nothing_of_itself(scribe, home):
    trace = scribe.record(home / "1.trace", PROGRAM)
    with tracer.open_trace(trace) as opened:
        assert opened.steps == 24
    paths = {event[1] for event in files.events(trace, 0)[1]}
    assert not [path for path in paths if path.startswith(str(trace)) or path.endswith(".py")]
    assert os.path.join(home, "ckpt.pt") in paths


def test_standard_input_is_given_again(home, caplog):
    before = """
        import sys
        factor = float(input("factor? "))
        words = sys.stdin.read().split()
    """
    script = program(home, before, factor="factor * len(words)")
    command = [sys.executable, "-m", "apps.cli", "record", "--out", "1.trace", "--keyframe-every", "5", script]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, input="1.5\none two three\n", cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert stdin.read(home / "1.trace", 0) == b"1.5\none two three\n"
    assert verify(home / "1.trace").verified
    kept = home / "1.trace/files/000.stdin"
    kept.write_bytes(b"2" + kept.read_bytes()[1:])
    assert stdin.read(home / "1.trace", 0) == b""
    assert not verify(home / "1.trace").verified
    assert f"{kept} is damaged: what the program read from standard input is lost" in caplog.text


def test_a_branch_that_diverges_over_a_file_of_its_own_says_so(scribe, tmp_path):
    script = program(
        tmp_path,
        "import os",
        """
        if i % 3 == 2:
            torch.save(model.state_dict(), "ck.pt")
        if i % 3 == 0 and os.path.exists("ck.pt"):
            model.load_state_dict(torch.load("ck.pt"))
        """,
    )
    trace = scribe.record(tmp_path / "t", script)
    branch(trace, tmp_path / "b", at=7, set={"optimizer.lr": "*0.5"})
    first = verify(tmp_path / "b").first_divergence
    assert "ck.pt: what a branch's run wrote is not kept" in first.cause
