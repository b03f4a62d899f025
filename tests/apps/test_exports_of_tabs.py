"""What every tab exports, in every format, and the Python that it copies, which is run. # S2.4, B8"""

from __future__ import annotations

import csv
import io
import json
from threading import Event

import numpy as np
import pytest
from pyarrow import parquet

from apps.exports import FORMATS, encode
from apps.runs import Runs
from apps.selection import TABS
from apps.viewer import Viewer
from tests.browser import chromium

SPECIAL = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    home = tmp_path_factory.mktemp("exports")
    script = chromium.HOUSE / "apps" / "demo_train.py"
    chromium.rewind("record", "--detail", "full", "--out", "demo", script, "--steps", 12, cwd=home)
    return home / "demo"


@pytest.fixture(scope="module")
def viewer(path):
    found = Viewer(Runs([path]), "step=5&feature=9&layer=bcl")
    replay = found._view("replay")
    replay._done(found.run, replay._work(found.run, 5))
    done = Event()
    sql = found._view("sql")
    arrived, sql._arrived = sql._arrived, lambda answer: (arrived(answer), done.set())
    sql._heard({"do": "sql", "query": "select step, loss, epoch from steps order by loss desc"})
    assert done.wait(120)
    yield found
    found.close()
    found._runs.close()


def tables(columns):
    return {name: np.asarray(v) for name, v in columns.items() if np.ndim(v) == 1}


def number(text):
    return SPECIAL.get(text, text)


def read(form, data):
    """A file as columns, by another reader than the writer."""
    if form == "npz":
        with np.load(io.BytesIO(data)) as found:
            return {name: found[name] for name in found.files}
    if form == "parquet":
        table = parquet.read_table(io.BytesIO(data))
        return {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    if form == "csv":
        head, *rows = csv.reader(io.StringIO(data.decode()))
        return dict(zip(head, np.array(rows).T, strict=True))
    rows = json.loads(data, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    return {name: np.array([number(row[name]) for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tab", TABS)
def test_every_tab_in_every_format(viewer, tab, form):
    viewer.choose(tab=tab, step=5)
    columns = viewer._view(tab).export()
    wanted = columns if form == "npz" else tables(columns)
    assert wanted
    assert max(len(v) for v in wanted.values()) > 0
    found = read(form, encode(columns, form))
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        own = found[name]
        if form == "npz" and np.asarray(values).dtype.kind == "O":
            assert own.dtype.kind in "ifU", "of objects NumPy makes pickles"
            own = own.astype(object)
        if np.asarray(values).dtype.kind in "iufb":
            own = own.astype(np.asarray(values).dtype) if form != "csv" or values.dtype.kind != "b" else own == "True"
            assert np.array_equal(own, values, equal_nan=values.dtype.kind == "f"), name
        else:
            assert [str(v) for v in own.tolist()] == [str(v) for v in np.asarray(values).tolist()], name


@pytest.mark.parametrize("tab", TABS)
def test_the_python_that_is_copied_runs(viewer, tab, capsys):
    viewer.choose(tab=tab, step=5)
    scope = {}
    exec(viewer._python(), scope)
    assert scope["trace"].path == viewer.run.trace.path
    scope["trace"].close()


def test_objects_are_kept_without_pickles():
    columns = {
        "step": np.array([1, 2], object),
        "loss": np.array([0.5, None], object),
        "word": np.array(["a", None], object),
        "large": np.array([2**70, 1], object),
    }
    found = read("npz", encode(columns, "npz"))
    assert {n: v.dtype.kind for n, v in found.items()} == {"step": "i", "loss": "f", "word": "U", "large": "U"}
    assert np.array_equal(found["loss"], [0.5, np.nan], equal_nan=True)
    assert found["large"].tolist() == [str(2**70), "1"]


def test_what_is_exported_is_what_was_recorded(viewer):
    trace, run = viewer.run.trace, viewer.run
    viewer.choose(tab="features", step=5)
    table = viewer._view("features").export()
    assert np.array_equal(table["win_rate"], trace.captures["bcl/win_rate"][5].numpy())
    viewer.choose(tab="matrices", step=5)
    pair = viewer._view("matrices").export()
    assert np.array_equal(pair["left_matrix"].ravel(), pair["left"])
    assert np.array_equal(pair["left_matrix"], run.cosine(viewer._view("matrices")._sides(run)[0], 5)[0])
    again = viewer._view("replay").export()
    gradient = trace.grads(5)["encoder.weight"].numpy()
    assert np.array_equal(again["gradient/encoder.weight"], gradient)
    assert again["activation/encoder"].shape[0] == len(run.batch(5).labels)
    place = again["name"].tolist().index("encoder.weight")
    assert again["norm"][place] == pytest.approx(float(np.linalg.norm(gradient.astype(np.float64))))
