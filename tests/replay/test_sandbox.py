"""A replayed script writes as it did, and overwrites nothing (C3): its writes go to a scratch folder and are read from there."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

from replay.sandbox import Sandbox, held_back


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's folder, in which the program runs."""
    folder = tmp_path / "home"
    (folder / "runs").mkdir(parents=True)
    (folder / "old.txt").write_text("old")
    (folder / "runs" / "best.pt").write_text("best")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def _environment():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def tree(folder):
    """Every file with its content, asked of the system without what the sandbox patches."""
    found = {}
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            found |= {f"{entry.name}/{k}": v for k, v in tree(entry.path).items()}
        else:
            found[entry.name] = entry.is_symlink() or entry.stat().st_size
    return found


@pytest.fixture
def untouched(home):
    """The user's files are afterwards as they were before."""
    before = tree(home), (home / "old.txt").read_text()
    yield
    assert (tree(home), (home / "old.txt").read_text()) == before


@pytest.fixture
def inside(scratch, untouched):
    with Sandbox(scratch).entered():
        yield


def write(path, text, mode="w"):
    with open(path, mode) as file:
        file.write(text)


def read(path):
    with open(path) as file:
        return file.read()


pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.usefixtures("inside")
class TestWriting:
    def test_a_new_file_is_read_back(self):
        write("new.txt", "hello")
        assert read("new.txt") == "hello"
        assert Path("new.txt").exists()
        assert os.path.getsize("new.txt") == 5

    def test_an_existing_file_is_replaced_for_the_program_alone(self, home):
        write("old.txt", "mine")
        assert read("old.txt") == read(home / "old.txt") == "mine"

    def test_appending_begins_with_what_was_there(self):
        write("old.txt", " and new", "a")
        assert read("old.txt") == "old and new"

    def test_changing_in_place(self):
        with open("old.txt", "r+") as file:
            file.write("c")
        assert read("old.txt") == "cld"

    def test_exclusive_creation(self):
        with pytest.raises(FileExistsError):
            write("old.txt", "", "x")
        write("fresh.txt", "a", "x")
        with pytest.raises(FileExistsError):
            write("fresh.txt", "", "x")

    def test_what_was_not_written_is_read_where_it_lies(self):
        assert read("old.txt") == "old"
        with pytest.raises(FileNotFoundError):
            read("never.txt")

    def test_every_way_to_write(self):
        io.open("a", "w").close()  # noqa: UP020  another name of it
        Path("b").write_text("b")
        os.close(os.open("c", os.O_CREAT | os.O_WRONLY))
        torch.save({"x": torch.ones(2)}, "d.pt")
        np.save("e.npy", np.ones(2))
        Path("f").touch()
        shutil.copy("old.txt", "g")
        os.truncate("old.txt", 1)
        assert torch.load("d.pt")["x"].tolist() == [1, 1]
        assert np.load("e.npy").tolist() == [1, 1]
        assert (Path("b").read_text(), read("g"), read("old.txt")) == ("b", "old", "o")

    def test_a_folder_that_there_is_not(self):
        with pytest.raises(FileNotFoundError):
            write("nowhere/x", "")
        os.makedirs("made/deep")
        write("made/deep/x", "1")
        assert os.listdir("made") == ["deep"]
        assert Path("made/deep").is_dir()
        os.makedirs("made/deep", exist_ok=True)
        with pytest.raises(FileExistsError):
            os.mkdir("runs")
        os.makedirs("runs", exist_ok=True)

    def test_devices_and_pipes_are_what_they_are(self):
        write(os.devnull, "x")
        reading, writing = os.pipe()
        with open(writing, "w") as file:
            file.write("through")
        with open(reading) as file:
            assert file.read() == "through"

    def test_temporary_files(self, scratch):
        with tempfile.NamedTemporaryFile() as file:
            assert file.name.startswith(str(scratch))
        with tempfile.TemporaryDirectory() as folder:
            write(f"{folder}/x", "1")
            assert read(f"{folder}/x") == "1"
        assert not os.path.exists(folder)


@pytest.mark.usefixtures("inside")
class TestRemovingAndMoving:
    def test_a_removed_file_is_gone_for_the_program(self, home):
        os.remove("old.txt")
        assert not os.path.exists("old.txt")
        assert not (home / "old.txt").exists()
        with pytest.raises(FileNotFoundError):
            read("old.txt")
        with pytest.raises(FileNotFoundError):
            os.remove("old.txt")
        write("old.txt", "again")
        assert read("old.txt") == "again"

    def test_its_own_file(self):
        write("new.txt", "1")
        Path("new.txt").unlink()
        assert not Path("new.txt").exists()
        with pytest.raises(FileNotFoundError):
            Path("never").unlink()
        Path("never").unlink(missing_ok=True)

    @pytest.mark.parametrize("name", ["rename", "replace"])
    def test_the_usual_atomic_write(self, name):
        move = getattr(os, name)
        write("old.txt.tmp", "whole")
        move("old.txt.tmp", "old.txt")
        assert read("old.txt") == "whole"
        assert not os.path.exists("old.txt.tmp")
        write("old.txt.tmp", "next")
        move("old.txt.tmp", "old.txt")
        assert read("old.txt") == "next"

    def test_a_file_of_the_users_is_moved_for_the_program_alone(self):
        Path("old.txt").rename("other.txt")
        assert read("other.txt") == "old"
        assert not os.path.exists("old.txt")

    def test_a_whole_folder(self):
        """Many scripts begin so: throw the output folder away, make it anew."""
        shutil.rmtree("runs")
        assert not os.path.exists("runs")
        assert not os.path.exists("runs/best.pt")
        os.makedirs("runs")
        assert not os.path.exists("runs/best.pt")
        write("runs/best.pt", "anew")
        assert read("runs/best.pt") == "anew"

    def test_keeping_the_last_checkpoints(self):
        """Listed, the folder has what the program wrote and the user's own files that it did not remove."""
        for step in range(5):
            write(f"runs/ckpt-{step}.pt", "x")
            for old in sorted(Path("runs").glob("ckpt-*.pt"))[:-2]:
                old.unlink()
        assert sorted(os.listdir("runs")) == ["best.pt", "ckpt-3.pt", "ckpt-4.pt"]
        os.remove("runs/best.pt")
        assert sorted(p.name for p in Path("runs").iterdir()) == ["ckpt-3.pt", "ckpt-4.pt"]
        with os.scandir("runs") as entries:
            assert sorted(os.fspath(e) for e in entries if e.is_file()) == ["runs/ckpt-3.pt", "runs/ckpt-4.pt"]
        assert sorted((d, sorted(f)) for d, _, f in os.walk("runs")) == [("runs", ["ckpt-3.pt", "ckpt-4.pt"])]
        with pytest.raises(OSError, match="not empty"):
            os.rmdir("runs")

    def test_its_own_folder(self):
        os.makedirs("made/deep")
        write("made/deep/x", "1")
        shutil.rmtree("made")
        assert not os.path.exists("made")
        assert sorted(os.listdir()) == ["old.txt", "runs"]

    def test_a_link_to_the_latest(self):
        for name in ("one", "two"):
            write(name, name)
            if os.path.lexists("latest"):
                os.remove("latest")
            os.symlink(name, "latest")
            assert read("latest") == name

    def test_a_second_name(self):
        os.link("old.txt", "same.txt")
        assert read("same.txt") == "old"


def test_a_method_that_writes_natively(scratch, home, monkeypatch):
    asked = {}

    class Tokenizer:
        def save(self, path, pretty=True):
            asked.update(saved=path, pretty=pretty)

        @staticmethod
        def from_file(path):
            asked.update(read=path)

    fake = types.ModuleType("tokenizers")
    fake.__spec__ = ModuleSpec("tokenizers", None)
    fake.Tokenizer = Tokenizer
    monkeypatch.setitem(sys.modules, "tokenizers", fake)
    with Sandbox(scratch).entered():
        Tokenizer().save("runs/tokenizer.json", pretty=False)
        Tokenizer().from_file("old.txt")
    assert asked == {"saved": f"{scratch}/files{home}/runs/tokenizer.json", "pretty": False, "read": "old.txt"}
    Tokenizer().save("runs/tokenizer.json")
    assert asked["saved"] == "runs/tokenizer.json"


def test_files_of_safetensors(scratch, home, monkeypatch):
    asked = {}
    fake = types.ModuleType("safetensors")
    fake.__spec__ = ModuleSpec("safetensors", None)
    fake.serialize_file = lambda tensors, path, **more: asked.update(written=str(path), **more)
    fake.safe_open = lambda path, framework: asked.update(read=str(path), framework=framework)
    monkeypatch.setitem(sys.modules, "safetensors", fake)
    with Sandbox(scratch).entered():
        fake.serialize_file({}, Path("runs/best.safetensors"), metadata=None)
        fake.safe_open("old.txt", framework="pt")
        Path("old.txt").write_text("new")
        assert asked == {"written": f"{scratch}/files{home}/runs/best.safetensors", "metadata": None} | {
            "read": "old.txt",
            "framework": "pt",
        }
        fake.safe_open("old.txt", framework="pt")
        assert asked["read"] == f"{scratch}/files{home}/old.txt"
    fake.serialize_file({}, "here")
    assert asked["written"] == "here"


def test_it_tells_what_it_held_back(scratch, home):
    with Sandbox(scratch).entered():
        write("old.txt", "mine")
        os.makedirs("made", exist_ok=True)
        write("made/x", "1")
        write("gone", "1")
        os.remove("gone")
    assert held_back(scratch) == [str(home / "made" / "x"), str(home / "old.txt")]
    assert (home / "old.txt").read_text() == "old"
    assert sorted(os.listdir(home)) == ["old.txt", "runs"]


def test_a_folder_that_may_be_written(scratch, home):
    with Sandbox(scratch, [str(home / "runs")]).entered():
        write("runs/best.pt", "better")
        write("runs_too", "x")
    assert (home / "runs" / "best.pt").read_text() == "better"
    assert not (home / "runs_too").exists()


def test_trackers_are_offline(scratch, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with Sandbox(scratch).entered():
        assert os.environ["WANDB_MODE"] == "disabled"


@pytest.mark.parametrize("server", ["http://tracking.example:5000", "databricks", "postgresql://me@host/runs"])
def test_what_a_tracker_would_send_to_a_server_goes_to_a_folder(scratch, monkeypatch, server):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with Sandbox(scratch).entered():
        assert os.environ["MLFLOW_TRACKING_URI"].startswith(f"file://{scratch}")
        assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"


@pytest.mark.parametrize("store", [None, "mlruns", "./runs", "file:///x", "sqlite:///runs.db"])
def test_a_tracker_that_writes_files_is_left_as_it_is(scratch, monkeypatch, store):
    if store is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with Sandbox(scratch).entered():
        assert os.environ.get("MLFLOW_TRACKING_URI") == store


def test_everything_is_put_back(scratch):
    touched = [
        *((builtins, "open"), (io, "open"), (torch, "save"), (tempfile, "tempdir"), (shutil, "_use_fd_functions")),
        *((os, name) for name in ("open", "mkdir", "remove", "unlink", "rmdir", "rename", "replace")),
        *((os, name) for name in ("stat", "lstat", "listdir", "scandir", "symlink", "link", "readlink")),
    ]
    before = [getattr(owner, name) for owner, name in touched]
    with pytest.raises(RuntimeError), Sandbox(scratch).entered():
        raise RuntimeError
    assert [getattr(owner, name) for owner, name in touched] == before


def test_names_as_bytes(inside, home):
    os.mkdir(b"made")
    with open(b"made/new.txt", "w") as file:
        file.write("new")
    os.remove(b"old.txt")
    assert os.listdir(b"made") == [b"new.txt"]
    assert sorted(os.listdir(b".")) == [b"made", b"runs"]
    assert read(b"made/new.txt") == "new"
    assert (os.path.exists(b"made/new.txt"), os.path.exists(b"old.txt")) == (True, False)
