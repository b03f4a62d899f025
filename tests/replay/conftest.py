"""Small recorded runs that the tests of replay ask things of; recorded once for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]


class Scribe:
    """Records scripts through the command line, each in a process forked from one of scribe.py."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where what they print is kept."""
        # One hash seed for all: their engines come from one nursery.
        environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1729"}
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("scribe.py")],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def record(self, out: Path, script: Path, *args: object, options: tuple[object, ...] = ()) -> Path:
        """Record `script` into `out`, from the folder that `out` is in, with keyframes close to each other."""
        arguments = ["record", "--out", out, "--keyframe-every", 5, *options, script, *args]
        prints = self._folder / out.parent.name
        print(json.dumps([str(out.parent), str(prints), [*map(str, arguments)]]), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        assert code == 0, prints.with_name(f"{prints.name}.stderr").read_text()[-3000:]
        return out

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture(scope="session")
def scribe(tmp_path_factory):
    """What records scripts; one for all tests of replay."""
    made = Scribe(tmp_path_factory.mktemp("scribe"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def basic(scribe, tmp_path_factory):
    """A convnet with dropout and BatchNorm, 24 steps, no weights stored: what is asked of states needs re-execution."""
    folder = tmp_path_factory.mktemp("basic")
    return scribe.record(folder / "t", HOUSE / "tests/programs/loader_basic.py", options=("--detail", "replay"))


@pytest.fixture(scope="session")
def no_loader(scribe, tmp_path_factory):
    """A loop without a DataLoader, 24 steps."""
    folder = tmp_path_factory.mktemp("no_loader")
    return scribe.record(folder / "t", HOUSE / "tests/programs/no_loader_while.py", options=("--detail", "replay"))


@pytest.fixture(scope="session")
def digits(scribe, tmp_path_factory):
    """The demo's autoencoder with BCL, 30 steps, no weights stored."""
    folder = tmp_path_factory.mktemp("digits")
    return scribe.record(folder / "t", HOUSE / "apps/demo_train.py", "--steps", 30, options=("--detail", "replay"))
