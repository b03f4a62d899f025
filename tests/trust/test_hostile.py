"""A stranger's trace: opening, listing, querying it runs nothing of it, reads nothing outside it, and takes no more memory and time
than this machine has. # B8
"""

from __future__ import annotations

import ast
import collections
import json
import os
import pickle
import shutil
import struct
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import duckdb
import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

import tracer
from tests.tracer.synthetic import make_trace
from tests.tracer.training import train
from tests.trust.survey import DAMAGED, survey
from tracer import columns, manifest, open_trace, segments, values
from tracer.errors import DamageError, MissingDataError, RewindError, UsageError
from tracer.past import Past
from tracer.shard import MOST_BYTES

FLIPS = int(os.environ.get("REWIND_FLIPS", "500"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "t"
    make_trace(path, 20, 3, 70, roll=8, grads=True)
    return path


@pytest.fixture
def trace(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "t"))


def commit_of(path: Path) -> Path:
    return path / "metrics" / "0000-000000.json"


def forge(file: Path, change) -> None:
    """Change the JSON of `file`, its sum made anew, as a stranger would."""
    facts = json.loads(file.read_text())
    facts.pop("sum", None)
    change(facts)
    file.write_bytes(segments.with_sum(facts))


class TestNothingRuns:
    def test_no_module_unpickles_or_evaluates(self):
        """Not by pickle, nor by what rests on it; `eval` and `exec` only where the user's own program or function is run."""
        unpickling = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        found = []
        for file in (f for room in ("tracer", "analysis", "apps") for f in (ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found += [f"{file.name}: import {n}" for n in names if n.partition(".")[0] in unpickling]
                if isinstance(node, ast.Call):
                    said = ast.unparse(node.func)
                    loads = said in ("torch.load", "eval") or (
                        said == "np.load" and "allow_pickle" in ast.unparse(node)
                    )
                    found += [f"{file.name}: {said}"] if loads else []
        assert found == []

    def test_a_payload_in_any_file_is_never_run(self, trace, tmp_path):
        mark = tmp_path / "ran"

        class Payload:
            def __reduce__(self):
                return os.mkdir, (str(mark),)

        payload = pickle.dumps(Payload())
        code = f"import os; os.mkdir({str(mark)!r})\n".encode()
        files = sorted(f for f in trace.rglob("*") if f.is_file())
        for number, file in enumerate(files[:: max(1, 2000 // FLIPS)] if FLIPS < 2000 else files):
            before = file.read_bytes()
            planted = (payload, code, payload + before, before + payload)[number % 4]
            file.write_bytes(planted)
            survey(trace)
            assert not mark.exists(), file
            file.write_bytes(before)

    @pytest.mark.parametrize("node", [
        {"$": "exec"}, {"$": "tensor"}, {"$": "array", "b": 0, "dtype": "O", "shape": [1]}, {"$": "dtype", "v": "load"},
        {"$": "tensor", "b": 9, "dtype": "float32", "shape": [1], "device": "cpu"}, {"$": ["a"]}, {"$": "named", "v": 3},
        {"$": "tensor", "b": 0, "dtype": "float32", "shape": [9], "device": "cpu"}, {"$": "dict", "v": [[[], 1]]},
        {"$": "tensor", "b": 1, "dtype": "float32", "shape": [2], "device": "cpu"}, {"x": 1}, {"$": "float", "bits": "z"},
    ])  # fmt: skip
    def test_values_that_make_no_sense_are_damage(self, node):
        with pytest.raises(RewindError):
            values.decode(node, [b"12345678", b""].__getitem__)

    def test_no_name_in_a_value_is_looked_up_by_more_than_its_place(self, monkeypatch):
        """Named tuples are found again by name; a module that loads on demand, or a property, is not asked."""
        asked = []
        lazy = types.ModuleType("lazy_of_the_program")
        lazy.__getattr__ = lambda name: asked.append(name)
        monkeypatch.setitem(sys.modules, lazy.__name__, lazy)
        lazy.Pair = collections.namedtuple("Pair", "a b", module=lazy.__name__)
        lazy.owner = type("Owner", (), {"Pair": property(lambda self: asked.append("property"))})()
        for name in ("lazy_of_the_program.Evil", "lazy_of_the_program.owner.Pair", "os.system", "subprocess.Popen"):
            node = {"$": "named", "type": name, "v": ["true"]}
            assert values.decode(node, [].__getitem__, types=columns.named_type) == ("true",)
        node = {"$": "named", "type": "lazy_of_the_program.Pair", "v": [1, 2]}
        assert values.decode(node, [].__getitem__, types=columns.named_type) == lazy.Pair(1, 2)
        assert asked == []

    def test_values_nested_without_end_are_damage(self):
        node: list = []
        for _ in range(100_000):
            node = [node]
        with pytest.raises(DamageError):
            values.decode(node, [].__getitem__)


class TestPaths:
    @pytest.mark.parametrize("name", ["../../secret", "/etc", "params/../../../x", "", "a//b", "."])
    def test_no_array_lies_outside(self, trace, name):
        forge(commit_of(trace), lambda f: f["params"][0].update(array=name))
        (trace / "index.duckdb").unlink()
        with open_trace(trace) as opened, pytest.raises(DamageError):
            opened.state(3)

    def test_no_source_lies_outside(self, trace, tmp_path):
        (tmp_path / "secret").write_text("secret")
        facts = manifest.read(trace)
        for name in ("../secret", "source/../../secret", str(tmp_path / "secret")):
            replace(facts, program=replace(facts.program, sources={"train.py": name})).write(trace)
            with open_trace(trace) as opened, pytest.raises(MissingDataError):
                Past(opened).source("train.py")
        (trace / "source").mkdir(exist_ok=True)
        (trace / "source" / "link").symlink_to(tmp_path / "secret")
        replace(facts, program=replace(facts.program, sources={"train.py": "source/link"})).write(trace)
        with open_trace(trace) as opened, pytest.raises(MissingDataError):
            Past(opened).source("train.py")


class TestBombs:
    def test_a_chunk_that_claims_to_be_huge(self, trace):
        """The description says a chunk of 8 TB; the frame holds one that is as small as it was."""
        file = trace / "tensors.zarr" / "grads" / "zarr.json"
        facts = json.loads(file.read_text())
        width = facts["shape"][1]
        facts["attributes"].pop("sum")
        facts["chunk_grid"]["configuration"]["chunk_shape"][1] *= 2**40 // width
        facts["codecs"][0]["configuration"]["chunk_shape"][1] *= 2**40 // width
        facts["shape"][1] = 2**40
        file.write_text(json.dumps(facts))
        with open_trace(trace) as opened, pytest.raises(DamageError):
            opened.grads(3)

    def test_a_frame_that_holds_more_than_its_chunk(self, trace):
        file = next(f for f in (trace / "tensors.zarr" / "grads" / "c").rglob("0") if f.is_file())
        data = bytearray(file.read_bytes())
        frame = blosc.compress(np.zeros(1 << 24, np.uint8), b"zstd", 1)
        per_shard = self._replace_first_chunk(data, frame, trace / "tensors.zarr" / "grads" / "zarr.json")
        assert per_shard
        file.write_bytes(data)
        with open_trace(trace) as opened, pytest.raises(DamageError, match="holds"):
            opened.grads(0)

    def _replace_first_chunk(self, data: bytearray, frame: bytes, described: Path) -> int:
        facts = json.loads(described.read_text())
        shard = facts["chunk_grid"]["configuration"]["chunk_shape"]
        chunk = facts["codecs"][0]["configuration"]["chunk_shape"]
        count = int(np.prod([s // c for s, c in zip(shard, chunk, strict=True)]))
        index = np.frombuffer(bytes(data[-16 * count - 4 : -4]), "<u8").reshape(-1, 2).copy()
        body = bytes(data[: -16 * count - 4])
        checked = frame + struct.pack("<I", google_crc32c.value(frame))
        index[0] = (len(body), len(checked))
        tail = index.tobytes()
        data[:] = body + checked + tail + struct.pack("<I", google_crc32c.value(tail))
        return count

    def test_chunks_that_share_their_bytes(self, trace):
        """One small frame that stands for every chunk: endless data from a small file."""
        file = next(f for f in (trace / "tensors.zarr" / "grads" / "c").rglob("0") if f.is_file())
        data = file.read_bytes()
        place = len(data) - 4
        facts = json.loads((trace / "tensors.zarr" / "grads" / "zarr.json").read_text())
        shard = facts["chunk_grid"]["configuration"]["chunk_shape"]
        chunk = facts["codecs"][0]["configuration"]["chunk_shape"]
        count = int(np.prod([s // c for s, c in zip(shard, chunk, strict=True)]))
        index = np.frombuffer(data[place - 16 * count : place], "<u8").reshape(-1, 2).copy()
        index[:] = index[0]
        tail = index.tobytes()
        file.write_bytes(data[: place - 16 * count] + tail + struct.pack("<I", google_crc32c.value(tail)))
        with open_trace(trace) as opened, pytest.raises(DamageError, match="twice"):
            opened.grads(0)

    @pytest.mark.parametrize(
        "runs", [[[0, 2**60]], [[5, 1]], [[-3, 5]], [[0.5, 2]], [["a", "b"]], [[0, 5, 9]], None, [[0, 1], [1, 5]]]
    )
    def test_sets_of_steps_that_cannot_be(self, trace, runs):
        forge(commit_of(trace), lambda f: f.update(steps=runs))
        found = survey(trace)
        assert any(isinstance(v, str) and v.startswith(DAMAGED) for v in found.values())

    def test_what_is_larger_than_the_machine_is_refused(self, trace):
        from tracer.store import ArraySpec, ZarrArray

        rows = MOST_BYTES // 4096 + 2
        spec = ArraySpec((rows, 1024), np.dtype("<f4"), (1, 1024), (16, 1024), ("row", "word"))
        with pytest.raises(DamageError, match="memory"):
            ZarrArray(trace / "x", spec).words(range(rows), 0, 1024)

    def test_json_nested_without_end(self, trace):
        deep = b"[" * 200_000
        for name in ("trace.json", "metrics/0000-000001.json", "tensors.zarr/params/zarr.json", "status.json"):
            copy = trace.with_name("copy")
            shutil.copytree(trace, copy)
            (copy / name).write_bytes(deep)
            survey(copy)
            shutil.rmtree(copy)


class TestSql:
    WRITES = (
        "delete from sealed_steps", "insert into sealed_steps select * from sealed_steps", "drop view steps",
        "create table x as select 1", "explain analyze delete from sealed_steps", "explain (analyze) delete from sealed_steps",
        "explain analyze create table x as select 1", " /* a */ explain analyze delete from sealed_steps",
        "explain analyze /* a */ delete from sealed_steps", "pragma table_info('steps')", "set threads = 1", "reset memory_limit",
        "set memory_limit = '1TB'", "set enable_external_access = true", "call enable_logging()", "install json", "load json",
        "load '/tmp/x.duckdb_extension'", "attach '/tmp/x.db'", "detach idx", "use idx", "checkpoint", "vacuum", "begin", "commit",
        "copy steps to '/tmp/rewind-out.csv'", "export database '/tmp/rewind-out'", "import database '/tmp/rewind-out'",
        "prepare p as select 1", "execute p", "select 1; delete from sealed_steps", "select 1; select 2", "",
    )  # fmt: skip
    READS = (
        "select * from read_text('{}')", "select * from read_csv('{}')", "select * from read_blob('{}')", "select * from '{}'",
        "select * from glob('/*')", "select * from read_parquet('/tmp/x.parquet')", "select * from read_json('{}')",
        "select * from sniff_csv('{}')", "select * from read_duckdb('{}')", "select getenv('HOME')", "from parquet_metadata('{}')",
        "select * from query('select * from read_text(''{}'')')",
    )  # fmt: skip

    @pytest.mark.parametrize("query", WRITES)
    def test_nothing_is_written(self, trace, query, tmp_path):
        with open_trace(trace) as opened:
            before = opened.sql("select count(*) from steps").fetchall()
            with pytest.raises(UsageError):
                opened.sql(query).fetchall()
            assert opened.sql("select count(*) from steps").fetchall() == before
        assert not Path("/tmp/rewind-out.csv").exists()

    @pytest.mark.parametrize("query", READS)
    def test_nothing_outside_is_read(self, trace, query, tmp_path):
        secret = tmp_path / "secret.csv"
        secret.write_text("secret\n1\n")
        with open_trace(trace) as opened, pytest.raises((UsageError, duckdb.Error)):
            opened.sql(query.format(secret)).fetchall()

    def test_plans_can_be_asked_for(self, trace):
        with open_trace(trace) as opened:
            for query in (
                "explain select 1",
                "explain analyze select count(*) from steps",
                "EXPLAIN (FORMAT json) from steps",
            ):
                assert opened.sql(query).fetchall()

    def test_a_query_without_end_is_stopped(self, trace):
        with open_trace(trace) as opened:
            with pytest.raises(UsageError, match="stopped"), opened.sql_within(0.3):
                opened.sql("select count(*) from range(1000000000) a, range(1000000000) b").fetchall()
            assert opened.sql("select count(*) from steps").fetchall() == [(20,)]

    def test_memory_is_limited_and_nothing_spills_beside(self, trace):
        with open_trace(trace) as opened:
            known = dict(opened.sql("select name, value from duckdb_settings()").fetchall())
        assert known["temp_directory"] == ""
        assert known["enable_external_access"] == "false"
        assert known["lock_configuration"] == "true"
        assert float(known["memory_limit"].split()[0]) * 2**30 <= MOST_BYTES * 1.01

    def test_views_in_a_planted_index_are_not_asked(self, trace):
        (trace / "index.duckdb").rename(trace / "true.duckdb")
        with duckdb.connect(str(trace / "index.duckdb")) as db:
            db.execute(f"attach '{trace / 'true.duckdb'}' as t (read_only)")
            db.execute("create table rewind_index as select * from t.rewind_index")
            for (name,) in db.execute("select table_name from duckdb_tables() where database_name = 't'").fetchall():
                if name.startswith("sealed_"):
                    db.execute(f"create table true_{name} as select * from t.{name}")
                    db.execute(f"create view {name} as select * from true_{name} where 1 = 0")
        with open_trace(trace) as opened:
            assert opened.sql("select count(*) from steps").fetchall() == [(20,)]


def test_a_program_from_elsewhere_is_not_run_unasked(trace, capsys):
    from apps.cli import run

    facts = manifest.read(trace)
    replace(facts.with_session(replace(facts.sessions[0], host="a-strangers-machine")), origin=None).write(trace)
    for verb in (["replay", str(trace), "--at", "3"], ["verify", str(trace)], ["until", str(trace), "loss < 0"]):
        assert run(verb) == 2
        said = capsys.readouterr().err
        assert "a-strangers-machine" in said
        assert "--trust" in said
    assert run(["verify", str(trace), "--checksums"]) == 0


def as_if_from_elsewhere(path):
    def foreign(facts):
        for session in facts.sessions:
            facts = facts.with_session(replace(session, host="elsewhere"))
        return replace(facts, origin=None)

    manifest.amend(path, foreign)


def test_the_app_runs_no_stranger_s_program_unless_it_is_told_to(unsealed, tmp_path, monkeypatch):
    """The tab Replay and the export of a state that is not stored ask as the verbs do. # C3"""
    from apps.cli import run
    from apps.views import replay as tab
    from tracer import origin

    path = tmp_path / "t"
    with tracer.record(path, weights=False):
        train(epochs=1)
    as_if_from_elsewhere(path)
    started = []
    monkeypatch.setattr(origin, "_all", threading.Event())
    monkeypatch.setattr(tab.replay, "Session", lambda *a, **k: started.append(a))
    monkeypatch.setattr(tab, "rerun", lambda session, k: None)
    view = tab.ReplayView.__new__(tab.ReplayView)
    view._session, view._anyway = None, False
    with tracer.open_trace(path) as trace:
        chosen = SimpleNamespace(trace=trace)
        with pytest.raises(UsageError, match=r"elsewhere.*rewind app --trust"):
            view._work(chosen, 1)
        assert run(["export", str(path), "--state", "3", "--out", str(tmp_path / "w.npz")]) == 2
        assert not started
        origin.allow_all()
        view._work(chosen, 1)
    assert len(started) == 1
