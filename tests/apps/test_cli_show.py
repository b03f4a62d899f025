"""The verbs app and export, as far as they go without a browser."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apps.cli import run
from tests.tracer.synthetic import make_trace

HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return make_trace(tmp_path_factory.mktemp("show") / "run", steps=5, features=4, inputs=6, seal=False, nan_at=2)


def test_a_view_is_exported_whole(truth, tmp_path):
    assert run(["export", str(truth.path), "--out", str(tmp_path / "steps.csv")]) == 0
    lines = (tmp_path / "steps.csv").read_text().splitlines()
    loss = lines[0].split(",").index("loss")
    assert [line.split(",")[loss] for line in lines[1:4]] == ["1.0", "0.5", "nan"]


def test_a_state_is_exported_bit_for_bit(truth, tmp_path):
    assert run(["export", str(truth.path), "--state", "3", "--out", str(tmp_path / "w.npz")]) == 0
    found = np.load(tmp_path / "w.npz")
    assert found["encoder.weight"].tobytes() == truth.weight[3].tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the command is given."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--view", "nothing", "--out", "new.csv"], "no view 'nothing'"),
        (["--out", "there.csv"], "nothing was overwritten"),
        (["--state", "1", "--out", "w.csv"], "export them as .npz"),
        (["--out", "w.xls"], "no format 'xls'"),
        (["--state", "99", "--out", "w.npz"], "99"),
    ],
)
def test_wrong_use_of_export_is_one_line(truth, folder, capsys, words, said):
    (folder / "there.csv").write_text("mine")
    assert run(["export", str(truth.path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in folder.iterdir()) == ["there.csv"]
    assert (folder / "there.csv").read_text() == "mine"


def test_app_says_what_is_wrong(truth, tmp_path, capsys):
    assert run(["app", str(tmp_path), "--no-browser"]) == 2
    assert "there is no trace to show" in capsys.readouterr().err
    assert run(["app", str(tmp_path / "nothing"), "--no-browser"]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["app", str(truth.path), "--no-browser", "--port", str(port)]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_the_sessions_of_closed_pages_are_cleared_away(truth):
    from apps.app import serve

    served = serve([truth.path])
    try:
        # Each session holds some MB: without this job a server that runs for days keeps them all.
        assert served.server._tornado._cleanup_job.is_running()
        assert served.url.startswith("http://127.0.0.1:")
    finally:
        served.close()


FRUGAL = """
import ctypes
import pyarrow as pa
import numpy as np
from apps.memory import frugal

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
frugal()
large = np.empty(4 << 20, np.uint8)
del large  # glibc would from here on keep what is this large
before = library.mallinfo2().hblks
kept = [np.empty(300 << 10, np.uint8) for _ in range(5)]
print(library.mallinfo2().hblks - before, pa.default_memory_pool().backend_name)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="another C library than glibc")
def test_a_server_gives_back_what_it_frees():
    """Large arrays are mapped each by itself, and no pool keeps what Arrow read."""
    done = subprocess.run([sys.executable, "-c", FRUGAL], capture_output=True, text=True, check=True, cwd=HOUSE)
    assert done.stdout.split() == ["5", "system"]
