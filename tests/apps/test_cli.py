"""The command line: what it accepts, how it ends, and what it never overwrites."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apps import cli
from apps.cli import run
from tracer import listing

HOUSE = Path(__file__).parents[2]
SCRIPT = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(20, 3), torch.randn(20, 2))
for x, y in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
    loss = torch.nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
print("arguments", *sys.argv[1:])
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 0)
"""


def rewind(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "apps.cli", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A trace of five steps, recorded through the command line."""
    home = tmp_path_factory.mktemp("cli")
    (home / "train.py").write_text(SCRIPT)
    done = rewind("record", "--detail", "full", "train.py", "0", "--detail", "x", "--", "-m", cwd=home)
    assert done.returncode == 0, done.stderr
    # Everything after SCRIPT went to it untouched, and it was heard.
    assert done.stdout.splitlines()[-1] == "arguments 0 --detail x -- -m"
    return home / "runs" / "train-1"


@pytest.fixture
def broken(tmp_path):
    """Directories that are no usable traces, by what is wrong with them."""
    newer = {"format": 99, "id": "x"}
    for name, text in {
        "newer": json.dumps(newer),
        "torn": '{"format": 1, "id"',
        "foreign": '{"name": "other"}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "trace.json").write_text(text)
    (tmp_path / "empty").mkdir()
    return tmp_path


def refused(capfd, *args: object) -> str:
    """Run, expect exit code 2 and one line on stderr, and return the line."""
    assert run([str(arg) for arg in args]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("rewind: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("verb", ["info", "status", "sql", "verify", "replay", "repair"])
@pytest.mark.parametrize("name", ["newer", "torn", "foreign", "empty", "missing"])
def test_what_is_no_trace_is_refused(verb, name, broken, capfd):
    before = sorted((path, path.stat().st_mtime_ns) for path in broken.rglob("*"))
    more = {"sql": ["select 1"], "replay": ["--at", "0"]}.get(verb, [])
    line = refused(capfd, verb, broken / name, *more)
    assert name in line
    assert sorted((path, path.stat().st_mtime_ns) for path in broken.rglob("*")) == before


@pytest.mark.parametrize(
    "args",
    [
        ["sing"],
        ["record"],
        ["record", "--every", "0", "train.py"],
        ["record", "--append", "train.py"],
        ["record", "--detail", "some", "train.py"],
        ["info"],
        ["sql", "t"],
        ["sql", "t", "select 1", "--format", "xml"],
        ["verify", "t", "--steps", "five"],
        ["replay", "t"],
        ["replay", "t", "--at", "-1"],
        ["ls", "not-there"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_refused(args, capfd):
    refused(capfd, *args)


@pytest.mark.parametrize(
    "query", ["selec 1", "select nothing from steps", "select cast('a' as int)", "select * from steps where"]
)
def test_a_wrong_query_is_refused(query, trace, capfd):
    refused(capfd, "sql", trace, query)


def test_an_unknown_script_is_refused(tmp_path):
    done = rewind("record", "not-there.py", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("rewind: ")
    assert list(tmp_path.iterdir()) == []


def test_a_script_that_never_trains_is_refused(tmp_path):
    (tmp_path / "idle.py").write_text("print('idle')\n")
    done = rewind("record", "idle.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "idle\n")
    assert done.stderr.splitlines()[-1].startswith("rewind: ")


def test_out_that_exists_is_not_overwritten(trace, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "note").write_text("mine")
    done = rewind("record", "--out", kept, trace.parents[1] / "train.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert [path.name for path in kept.iterdir()] == ["note"]


def test_sql_out_that_exists_is_not_overwritten(trace, tmp_path, capfd):
    kept = tmp_path / "rows.csv"
    kept.write_text("mine")
    refused(capfd, "sql", trace, "select 1", "--format", "csv", "--out", kept)
    assert kept.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [kept]


def test_a_step_that_does_not_exist_is_refused(trace, capfd):
    assert "99" in refused(capfd, "replay", trace, "--at", "99")


def test_exit_code_of_the_program_passes_through(trace, tmp_path):
    done = rewind("record", "--out", tmp_path / "t", trace.parents[1] / "train.py", "7", cwd=tmp_path)
    assert done.returncode == 7
    assert run(["info", str(tmp_path / "t")]) == 0


def test_info_says_what_was_proven(tmp_path, trace, capfd):  # B2
    path = tmp_path / "t"
    shutil.copytree(trace, path)
    assert run(["info", str(path)]) == 0
    assert "verdicts        not verified yet\n" in capfd.readouterr().out
    assert run(["replay", str(path), "--at", "2"]) == 0
    capfd.readouterr()
    assert run(["info", str(path)]) == 0
    assert re.search(r"^verdicts +proven in part: 1 of 5 steps, on \d{4}-", capfd.readouterr().out, re.MULTILINE)
    assert run(["verify", str(path)]) == 0
    capfd.readouterr()
    assert run(["info", str(path), "--json"]) == 0
    known = json.loads(capfd.readouterr().out)["verdicts"]
    assert (known["verified"], known["steps"], known["untried"]) == (5, 5, 0)


def test_info_json(trace, capfd):  # issue 2, point 5
    assert run(["info", str(trace), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    wanted = {"steps", "sessions", "keyframes", "detail", "bytes", "bytes_per_step", "replayable", "script", "parent"}
    assert wanted <= facts.keys()
    assert (facts["steps"], facts["detail"], facts["replayable"], facts["parent"]) == (5, "full", True, None)
    assert Path(facts["script"]).name == "train.py"


def test_ls(trace, broken, capfd):
    assert run(["ls", str(trace.parents[1]), "--json"]) == 0
    (facts,) = json.loads(capfd.readouterr().out)
    assert (facts["steps"], facts["sessions"], facts["status"]) == (5, 1, "finished")
    assert run(["ls", str(broken)]) == 0
    out = capfd.readouterr().out
    assert out.count("broken") == 3
    assert "newer" in out


def test_ls_shows_the_newest_first(trace, tmp_path):
    facts = json.loads((trace / "trace.json").read_text())
    for name, created in (("old", 1.0), ("new", 3.0), ("middle", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trace.json").write_text(json.dumps({**facts, "created": created, "sum": None}))
    assert [Path(found["path"]).name for found in listing.ls(tmp_path)] == ["new", "middle", "old"]


# C4, S1.2: what is not a number stays visible in every format.
STRANGE = "select 'nan'::double a, 'inf'::double b, '-inf'::double c, null d, '' e, 'x,\"y\nz' f order by all"


def test_sql_json_says_what_json_cannot(trace, capfd):
    assert run(["sql", str(trace), STRANGE, "--json"]) == 0
    rows = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    assert rows == [{"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": None, "e": "", "f": 'x,"y\nz'}]


def test_sql_json_keeps_columns_of_one_name_apart(trace, capfd):
    assert run(["sql", str(trace), "select 1 a, 2 a_1, 3 a", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == [{"a": 1, "a_1": 2, "a_2": 3}]


def test_sql_csv(trace, capfd):
    assert run(["sql", str(trace), STRANGE, "--format", "csv"]) == 0
    assert capfd.readouterr().out == 'a,b,c,d,e,f\nnan,inf,-inf,,,"x,""y\nz"\n'


def test_sql_parquet(trace, tmp_path):
    import pyarrow.parquet

    target = tmp_path / "rows.parquet"
    assert run(["sql", str(trace), "select step, loss from steps", "--format", "parquet", "--out", str(target)]) == 0
    assert pyarrow.parquet.read_table(target)["step"].to_pylist() == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [target]


def test_sql_table_and_empty_results(trace, capfd):
    assert run(["sql", str(trace), "select step from steps where step > 3"]) == 0
    assert capfd.readouterr().out == "step\n----\n   4\n"
    assert run(["sql", str(trace), "select step from steps where step > 9", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []


def test_replay_and_verify(trace):  # C3, B2
    done = rewind("replay", trace, "--at", 2, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("step ")] == [
        "step 2: verified, bit for bit",
        "step 3: verified, bit for bit",
    ]
    done = rewind("verify", trace, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "steps": 5, "verified": 5, "diverged": 0, "unverifiable": 0, "first_divergence": None
    }  # fmt: skip


def test_repair_of_a_whole_trace_does_nothing(trace, capfd):
    # On a busy machine the sealer may not be done when the recording ends: the first repair does what is left.
    assert run(["repair", str(trace), "--json"]) == 0
    capfd.readouterr()
    assert run(["repair", str(trace), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"done": []}


def test_interrupt_ends_quietly(monkeypatch, capfd):
    monkeypatch.setattr(listing, "ls", lambda directory: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(["ls"]) == cli.INTERRUPTED
    assert "Traceback" not in capfd.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    with subprocess.Popen(
        [sys.executable, "-m", "apps.cli", "ls", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == cli.READER_GONE


@pytest.mark.parametrize("given", [None, "7"])
def test_a_recording_has_a_known_hash_seed(given, tmp_path, monkeypatch):
    (tmp_path / "seed.py").write_text("import os; print(os.environ['PYTHONHASHSEED'])\n" + SCRIPT)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONHASHSEED", given)
    done = rewind("record", "--out", "t", "seed.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seed = done.stdout.splitlines()[0]
    assert seed == given if given else seed.isdigit()
