from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from tests.tracer.synthetic import BATCH, make_trace
from tracer import addenda, index, tables, views
from tracer.errors import DamageError, UsageError
from tracer.index import Index
from tracer.sealer import TailSealer, seal
from tracer.tail import read_tail
from tracer.trace import Trace, open_trace

STEPS, CUT, MORE, PER_EPOCH = 150, 119, 89, 50
VIEWS = {
    "steps",
    "all_steps",
    "metrics",
    "features",
    "captures",
    "keyframes",
    "sessions",
    "epochs",
    "events",
    "branches",
}


@pytest.fixture(scope="module", params=["tails", "mixed", "sealed", "parquet"])
def trace(request, tmp_path_factory) -> Trace:
    path = tmp_path_factory.mktemp(request.param) / "t"
    make_trace(path, STEPS, 6, 20, seal=False, sessions=((CUT, MORE),), roll=32, nan_at=7)
    if request.param == "mixed":
        TailSealer(path).seal(None, rolled_only=True)
    elif request.param != "tails":
        seal(path)
    if request.param == "parquet":
        (path / "index.duckdb").unlink()
    with open_trace(path) as opened:
        yield opened


def one(trace: Trace, query: str):
    ((value,),) = trace.sql(query).fetchall()
    return value


def test_the_views_and_their_columns(trace):  # C4
    schema = trace.schema()
    assert set(schema) == VIEWS
    wanted = "step session epoch batch_index batch_size loss lr grad_norm time fingerprint verdict accuracy"
    assert set(wanted.split()) <= set(schema["steps"])
    assert list(schema["metrics"]) == ["step", "name", "value", "source"]
    assert list(schema["features"])[:4] == ["step", "session", "layer", "feature"]
    assert {"win_rate", "attraction_weight"} <= set(schema["features"])
    assert "image_coverage" not in schema["features"]
    assert {"step", "key", "dtype", "shape", "bytes"} <= set(schema["captures"])


def test_a_resumed_step_does_not_appear_twice(trace):  # S1.3
    assert one(trace, "select count(*) from steps") == CUT + MORE
    assert one(trace, "select count(distinct step) from steps") == CUT + MORE
    assert one(trace, "select count(*) from all_steps") == STEPS + MORE
    assert one(trace, "select count(*) from all_steps where superseded") == STEPS - CUT
    assert one(trace, "select count(*) from features") == (CUT + MORE) * 6
    assert one(trace, "select count(*) from captures where key = 'bcl/som_targets'") == CUT + MORE
    assert trace.sql("select session, min(step), max(step) from steps group by all order by 1").fetchall() == [
        (0, 0, CUT - 1),
        (1, CUT, CUT + MORE - 1),
    ]


def test_sessions_keep_their_own_ranges(trace):
    found = trace.sql("select session, first_step, last_step, status from sessions").fetchall()
    assert found == [(0, 0, STEPS - 1, "finished"), (1, CUT, CUT + MORE - 1, "finished")]


def test_nan_stays_nan(trace):  # S1.2
    assert math.isnan(one(trace, "select loss from steps where step = 7"))
    assert one(trace, "select count(*) from steps where isnan(loss)") == 1
    assert one(trace, "select count(*) from metrics where name = 'loss' and isnan(value)") == 1
    assert one(trace, "select count(*) from steps where loss is null") == 0
    assert one(trace, "select count(*) from steps where loss > 1e6") == 1, "DuckDB holds NaN for the greatest"


def test_metrics_is_the_long_form(trace):
    found = trace.sql("select name, value, source from metrics where step = 3 order by name").fetchall()
    assert found == [
        ("Accuracy", 1.0, "logged"),
        ("accuracy", 0.003, "logged"),
        ("grad_norm", 0.5, "recorded"),
        ("loss", 0.25, "recorded"),
        ("lr", 0.001, "recorded"),
    ]


def test_names_that_differ_in_case_stay_apart(trace):
    columns = [c for c in trace.schema()["steps"] if c.lower().startswith("accuracy")]
    assert len(columns) == 2
    assert one(trace, f'select avg("{columns[1]}") from steps') == 1.0


def test_both_means_of_an_epoch(trace):  # S1.1
    (found,) = trace.sql(
        "select loss_batch_mean, loss_sample_mean, samples, offered, dropped from epochs where first_step = 50"
    ).fetchall()
    steps = range(50, 100)
    losses = [1 / (k + 1) for k in steps]
    sizes = [BATCH if k % PER_EPOCH < PER_EPOCH - 1 else BATCH - 5 for k in steps]
    assert found[0] == pytest.approx(sum(losses) / 50)
    assert found[1] == pytest.approx(sum(x * n for x, n in zip(losses, sizes, strict=True)) / sum(sizes))
    assert found[0] != pytest.approx(found[1], rel=1e-6)
    assert found[2:] == (50 * BATCH, 50, 0)


def test_features_are_wide(trace):  # S4.4 S4.9
    dying = "select min(step) from features where feature = 5 and win_rate < 0.5"
    assert one(trace, dying) > 0
    assert one(trace, "select count(distinct layer) from features where layer = 'bcl'") == 1


@pytest.mark.parametrize(
    "query",
    [
        "select nope from steps",
        "selec",
        "",
        "select 1; select 2",
        "copy steps to '{out}'",
        "create table x as select 1",
        "attach '{out}'",
        "set enable_external_access = true",
        "select * from read_text('/etc/passwd')",
        "select * from read_parquet('{out}')",
        "select * from glob('/etc/*')",
        "install httpfs",
        "load httpfs",
        "export database '{out}'",
        "drop view steps",
        "pragma database_list",
    ],
)
def test_a_query_can_only_read_the_trace(trace, tmp_path, query):
    out = tmp_path / "out"
    with pytest.raises(UsageError) as caught:
        trace.sql(query.format(out=out)).fetchall()
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert one(trace, "select count(*) from steps") == CUT + MORE


@pytest.mark.parametrize(
    "query", ["describe steps", "show tables", "summarize steps", "explain from steps", "from steps"]
)
def test_ways_of_reading(trace, query):
    assert trace.sql(query).fetchall()


def test_parameters(trace):
    assert trace.sql("select loss from steps where step = ?", [3]).fetchall() == [(0.25,)]
    assert trace.sql("select loss from steps where step = $k", {"k": 3}).fetchall() == [(0.25,)]


def test_python_variables_are_out_of_reach(trace):
    secret = tables.SCHEMAS["steps"].empty_table()
    with pytest.raises(UsageError):
        trace.sql("select * from secret")
    assert len(secret) == 0


def test_any_duckdb_opens_the_index(tmp_path):  # B8
    make_trace(tmp_path / "t", 60, 4, 10, roll=16, nan_at=3)
    with (
        open_trace(tmp_path / "t") as trace,
        duckdb.connect(str(tmp_path / "t" / "index.duckdb"), read_only=True) as db,
    ):
        for view in VIEWS:
            assert db.sql(f"from {view} order by all").fetchall().__repr__() == (
                trace.sql(f"from {view} order by all").fetchall().__repr__()
            )


def test_a_stale_or_broken_index_is_not_believed(tmp_path):
    path = tmp_path / "t"
    make_trace(path, 60, 4, 10, seal=False, sessions=((60, 20),), roll=16)
    session_1 = sorted((path / "tail").glob("0001-*"))
    for tail in session_1:
        tail.rename(path / tail.name)
    seal(path)
    for tail in session_1:
        (path / tail.name).rename(tail)
    TailSealer(path).seal(None, rolled_only=False)
    assert one(open_trace(path), "select count(*) from steps") == 80
    (path / "index.duckdb").write_bytes(b"not a database")
    assert one(open_trace(path), "select count(*) from steps") == 80


def test_a_damaged_segment_is_noticed(tmp_path):
    path = tmp_path / "t"
    make_trace(path, 40, 4, 10, roll=16)
    (path / "index.duckdb").unlink()
    features = path / "metrics" / "0000-000001.features.parquet"
    data = bytearray(features.read_bytes())
    data[len(data) // 3] ^= 1
    features.write_bytes(bytes(data))
    for gone in (False, True):
        if gone:
            features.unlink()
        with open_trace(path) as trace:
            for query in (
                "select count(*) from features",
                "with few as (select feature from features) select s.step from steps s, few",
                "select * from query('select * from features')",
                "from query_table('features')",
            ):
                with pytest.raises(DamageError, match="steps 16 to 31 of features"):
                    trace.sql(query)
            # What is not made of it answers.
            assert trace.sql("select count(*) from steps").fetchall() == [(40,)]


def test_segments_with_other_columns_and_types_meet(tmp_path):
    path = tmp_path / "t"
    make_trace(path, 40, 4, 10, roll=16, seal=False)
    with open_trace(path) as trace:
        names = ["0000-000000", "0000-000001", "0000-000002"]
        for i, name in enumerate(names):
            TailSealer(path).seal(0, rolled_only=True)
            table = pq.read_table(path / "metrics" / f"{name}.steps.parquet") if i < 2 else None
            if table is not None:
                wider = table.append_column(f"extra{i}", pa.array([i] * len(table), pa.int64()))
                data = tables.parquet(wider)
                (path / "metrics" / f"{name}.steps.parquet").write_bytes(data)
                commit = path / "metrics" / f"{name}.json"
                facts = json.loads(commit.read_text())
                facts["files"]["steps"]["xxh3"] = xxhash.xxh3_64_hexdigest(data)
                del facts["sum"]
                commit.write_text(json.dumps(facts))
        trace.refresh()
        found = trace.sql("select count(extra0), count(extra1), count(*) from steps").fetchall()
        assert found == [(16, 16, 40)]


def test_hindsight_joins_metrics(tmp_path):  # B3
    path = tmp_path / "t"
    make_trace(path, 20, 4, 10)
    rows = [(k, "norm", k / 2) for k in range(20)]
    one_file = addenda.write_hindsight(path, "my metric/1", "abcd", rows, {"source": "def f(): ..."})
    other = addenda.write_hindsight(path, "my metric/1", "abcd", [(3, "norm", 99.0)])
    assert one_file != other
    assert one_file.with_suffix(".json").exists()
    with open_trace(path) as trace:
        found = trace.sql("select value, source from metrics where name = 'norm' and step in (3, 4) order by step")
        assert found.fetchall() == [(99.0, "hindsight:abcd"), (2.0, "hindsight:abcd")]
        addenda.write_hindsight(path, "later", "ef", [(1, "late", float("nan"))])
        assert math.isnan(one(trace, "select value from metrics where name = 'late'"))


def test_verdicts_join_steps(tmp_path):  # C3
    path = tmp_path / "t"
    make_trace(path, 20, 4, 10)
    addenda.write_verdicts(path, [(3, "diverged"), (4, "verified")])
    addenda.write_verdicts(path, [(3, "verified")])
    with open_trace(path) as trace:
        found = trace.sql("select step, verdict from steps where verdict is not null order by 1").fetchall()
        assert found == [(3, "verified"), (4, "verified")]
        assert trace.verdicts == {3: "verified", 4: "verified"}
    seal(path)
    with duckdb.connect(str(path / "index.duckdb"), read_only=True) as db:
        assert db.sql("select count(verdict) from steps").fetchall() == [(2,)]


def test_columns_keep_clear_of_taken_names():
    columns = tables.Columns(["step", "loss"])
    assert columns.column("accuracy") == "accuracy"
    assert columns.column("STEP") != "STEP"
    assert columns.column("verdict") != "verdict"
    assert columns.column("Accuracy") not in ("accuracy", "Accuracy")
    assert columns.column("accuracy") == "accuracy"
    assert len(set(columns.names.values())) == 4


NOTEBOOK = """
import sys, types
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
sys.modules["ipywidgets"] = None
from tracer import open_trace
print(open_trace(sys.argv[1]).sql("select count(*) from steps").fetchall())
"""


def test_in_a_notebook_without_its_widgets(tmp_path):
    """DuckDB refuses any word about its progress bar there; it asks IPython, and whether the main module has a file."""
    make_trace(tmp_path / "t", 10, 6, 20)
    command = [sys.executable, "-c", NOTEBOOK, str(tmp_path / "t")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[(10,)]\n", "")


def test_a_directory_with_a_quote_in_its_name(tmp_path):
    path = tmp_path / "it's" / "t"
    make_trace(path, 20, 4, 10)
    (path / "index.duckdb").unlink()
    with open_trace(path) as trace:
        assert one(trace, "select count(*) from steps") == 20


def go_on(whole, cut: int, path) -> None:
    """Write the tail of the run at `path` on, up to byte `cut` of the whole one."""
    tail = path / "tail" / "0000-000000.log"
    with open(tail, "ab") as file:
        file.write((whole / "tail" / tail.name).read_bytes()[tail.stat().st_size : cut])


def test_asking_a_live_run_again_takes_over_only_what_is_new(tmp_path, monkeypatch):
    make_trace(tmp_path / "whole", steps=40, inputs=4, features=4, seal=False, close=False)
    log = tmp_path / "whole" / "tail" / "0000-000000.log"
    ends = [record.end for record in read_tail(log) if record.kind == "step"]
    path = tmp_path / "t"
    shutil.copytree(tmp_path / "whole", path)
    (path / "tail" / log.name).write_bytes(b"")
    go_on(tmp_path / "whole", ends[29], path)
    taken, defined = [], []
    real, define = Index._append, index._define
    monkeypatch.setattr(
        Index, "_append", lambda self, name, rows: (taken.append((name, len(rows))), real(self, name, rows))
    )
    monkeypatch.setattr(index, "_define", lambda *a: (defined.append(1), define(*a)))
    with open_trace(path) as trace:
        assert trace.sql("select count(*), max(step) from steps").fetchall() == [(30, 29)]
        assert ("tail_steps", 30) in taken
        for k in range(30, 40):
            taken.clear()
            defined.clear()
            go_on(tmp_path / "whole", ends[k], path)
            assert trace.sql("select count(*), max(step) from steps").fetchall() == [(k + 1, k)]
            assert trace.sql("select count(distinct step) from features").fetchall() == [(k + 1,)]
            assert ("tail_steps", 1) in taken
            assert max(count for _, count in taken) < 12
            assert not defined
        taken.clear()
        assert trace.sql("select count(*) from steps").fetchall() == [(40,)]
        assert not taken


def test_what_could_not_be_taken_over_is_taken_the_next_time(tmp_path, monkeypatch):
    make_trace(tmp_path / "t", steps=40, inputs=4, features=4, roll=16, seal=False, close=False)
    with open_trace(tmp_path / "t") as trace:
        with monkeypatch.context() as patch:
            patch.setattr(Index, "_define", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                trace.sql("select 1")
        assert trace.sql("select count(*), count(distinct step) from steps").fetchall() == [(40, 40)]
        TailSealer(tmp_path / "t").seal(0, rolled_only=True)
        assert trace.sql("select count(*), count(distinct step) from steps").fetchall() == [(40, 40)]


def test_what_is_not_joined_would_have_said_nothing(tmp_path, monkeypatch):
    make_trace(tmp_path / "t", steps=40, inputs=4, features=4, nan_at=7)
    found, real = [], views.view_statements
    for joined in (False, True):
        with monkeypatch.context() as patch:
            if joined:
                patch.setattr(views, "view_statements", lambda *a, **_: real(*a, cut=True, judged=True))
            with open_trace(tmp_path / "t") as trace:
                schema = trace.schema()
                rows = {view: trace.sql(f"select * from {view} order by all").fetchall() for view in schema}
                found.append((schema, repr(rows)))
    assert found[0] == found[1]
