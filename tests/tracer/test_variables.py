"""Environment variables that a program looks up: which are kept, which never, and who may give them to a replay."""

from __future__ import annotations

import os
import stat

import pytest

from tracer import variables
from tracer.variables import Lookups, Variables


@pytest.fixture
def trace(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "t").mkdir()
    return tmp_path / "t"


def seen(trace, act):
    """What is noticed of what `act` does."""
    lookups = Lookups(trace, 0)
    with variables.watched(lookups):
        act()
    lookups.write()
    return variables.read(trace, 0, ours=True)


def test_looked_up_set_and_not_set(trace, monkeypatch):
    monkeypatch.setenv("MY_RATE", "0.5")
    monkeypatch.setenv("MY_OTHER", "1")

    def act():
        os.environ["MY_RATE"]
        os.environ.get("MY_DEVICE")
        os.getenv("PATH")

    found = seen(trace, act)
    assert found.values == {"MY_RATE": "0.5", "MY_DEVICE": None}
    assert found.own == ["MY_RATE", "MY_DEVICE"]
    assert found.given({"MY_DEVICE": "gpu", "KEPT": "1"}) == {"KEPT": "1", "MY_RATE": "0.5"}
    assert found.told() == "MY_RATE=0.5, MY_DEVICE not set"


def test_as_it_was_when_the_recording_began(trace, monkeypatch):
    monkeypatch.setenv("MY_SEED", "1")
    monkeypatch.delenv("MY_OWN", raising=False)

    def act():
        assert os.environ["MY_SEED"] == "1"
        monkeypatch.setenv("MY_SEED", "2")
        os.environ.setdefault("MY_DEFAULT", "x")
        os.environ["MY_OWN"] = "set by the program"
        os.environ["MY_OWN"]
        del os.environ["MY_OWN"], os.environ["MY_DEFAULT"]

    assert seen(trace, act).values == {"MY_SEED": "1", "MY_DEFAULT": None}


@pytest.mark.parametrize(
    "copy", [dict, lambda env: env.copy(), lambda env: list(env.items()), lambda env: list(env.values()), list]
)
def test_who_copies_them_all_has_looked_up_none(trace, copy):
    assert seen(trace, lambda: copy(os.environ)) == Variables()


def test_who_picks_some_has_looked_up_those(trace, monkeypatch):
    monkeypatch.setenv("MY_A", "1")
    monkeypatch.setenv("MY_B", "2")
    found = seen(trace, lambda: {name: os.environ[name] for name in os.environ if name.startswith("MY_")})
    assert found.values == {"MY_A": "1", "MY_B": "2"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_API_KEY", "short"),
        ("HF_TOKEN", "short"),
        ("MY_SECRETS", "short"),
        ("PGPASSWORD", "short"),
        ("BASIC_AUTH", "short"),
        ("DATABASE", "postgres://user:word@host/db"),
        ("CALLBACK", "https://host/?token=short"),
        ("WHATEVER", "ghp_abc"),
        ("RANDOM_ID", "4f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c"),
        ("BLOB", "x" * 5000),
    ],
)
def test_of_a_secret_only_that_it_was_set(trace, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    found = seen(trace, lambda: os.environ[name])
    assert found == Variables({}, [name], [name])
    assert value not in variables.file_of(trace, 0).read_text()
    assert found.given({name: "as it is here"}) == {name: "as it is here"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOKENIZERS_PARALLELISM", "false"), ("DATA_DIR", "/data/imagenet-2012/train"), ("URI", "file:///data/mlruns")],
)
def test_what_is_no_secret_is_kept(trace, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert seen(trace, lambda: os.environ[name]).values == {name: value}


def test_only_its_owner_can_read_it_and_what_others_changed_is_not_given(trace, monkeypatch):
    monkeypatch.setenv("MY_RATE", "0.5")
    assert seen(trace, lambda: os.environ["MY_RATE"]).values == {"MY_RATE": "0.5"}
    place = variables.file_of(trace, 0)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600

    found = Variables({"LD_PRELOAD": "x.so"})
    monkeypatch.setenv("XDG_STATE_HOME", str(trace / "of another"))
    variables._write(trace, 0, found)
    monkeypatch.setenv("XDG_STATE_HOME", str(trace.parent / "state"))
    assert variables.read(trace, 0, ours=True) == Variables()
    assert variables.read(trace, 0) == found

    place.write_bytes(place.read_bytes().replace(b"x.so", b"y.so"))
    assert variables.read(trace, 0) == Variables()


def test_everything_is_put_back(trace):
    kind = type(os.environ)
    before = [getattr(kind, name) for name in ("__getitem__", "__setitem__", "__delitem__", "__iter__")]
    seen(trace, lambda: None)
    assert [getattr(kind, name) for name in ("__getitem__", "__setitem__", "__delitem__", "__iter__")] == before
