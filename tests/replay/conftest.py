"""Small recorded runs that the tests of replay ask things of; recorded once for all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]


def record(out: Path, script: Path, *args: object, options: tuple[object, ...] = ()) -> Path:
    """Record `script` through the command line, with keyframes close to each other."""
    command = [sys.executable, "-m", "apps.cli", "record", "--out", out, "--keyframe-every", 5, *options, script, *args]
    # One hash seed for all: their engines come from one nursery.
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1729"}
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="session")
def basic(tmp_path_factory):
    """A convnet with dropout and BatchNorm, 24 steps, no weights stored: what is asked of states needs re-execution."""
    folder = tmp_path_factory.mktemp("basic")
    return record(folder / "t", HOUSE / "tests/programs/loader_basic.py", options=("--detail", "replay"))


@pytest.fixture(scope="session")
def no_loader(tmp_path_factory):
    """A loop without a DataLoader, 24 steps."""
    folder = tmp_path_factory.mktemp("no_loader")
    return record(folder / "t", HOUSE / "tests/programs/no_loader_while.py", options=("--detail", "replay"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The demo's autoencoder with BCL, 30 steps, no weights stored."""
    folder = tmp_path_factory.mktemp("digits")
    script = HOUSE / "apps/demo_train.py"
    return record(folder / "t", script, "--steps", 30, options=("--detail", "replay"))
