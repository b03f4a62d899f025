"""Recording changes nothing that the program can tell: output, weights to the last bit, exit code (C1, B1)."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
PROGRAMS = HOUSE / "tests" / "programs"
# (program, options of `rewind record`): all kinds of random generators, hooks, closures, workers and endings.
CASES = [
    ("loader_basic", ["--detail", "full"]),
    ("loader_augment", ["--every", "3"]),
    ("loader_persistent", []),
    ("no_loader_prefetch", []),
    ("gan", ["--detail", "full"]),
    ("lbfgs_closure", []),
    ("amp_bfloat16", []),
    ("ema", ["--keyframe-every", "1"]),
    ("multi_loss", []),
    ("sparse_embedding", ["--detail", "full"]),
    ("numpy_permutation", ["--detail", "metrics"]),
    ("iterable_dataset", []),
    ("reinforce", []),
    ("hidden_state_hook", []),
    ("peek_first_batch", []),
    ("two_models", []),
    ("crash", []),
    ("sys_exit", []),
]
ENDS = {"crash": 1, "sys_exit": 3}


def python(home: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, in `home`, with one thread for torch."""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=240)


def run_both(program: str, options: list[str], home: Path) -> tuple[subprocess.CompletedProcess[str], ...]:
    """Run `program` plainly, then recorded."""
    script = PROGRAMS / f"{program}.py"
    plain = python(home, script)
    return plain, python(home, "-m", "apps.cli", "record", "--out", "t.trace", *options, script)


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Both runs of every program that the chosen tests ask for, two at work at a time, as futures."""
    wanted = [i.callspec.params for i in request.session.items if i.module is request.module]
    with ThreadPoolExecutor(2) as pool:
        yield {w["program"]: pool.submit(run_both, **w, home=tmp_path_factory.mktemp(w["program"])) for w in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("program", "options"), CASES, ids=[program for program, _ in CASES])
def test_recorded_equals_plain(program, options, runs):
    plain, recorded = runs[program].result()
    assert plain.returncode == ENDS.get(program, 0), plain.stderr[-3000:]
    assert recorded.returncode == plain.returncode, recorded.stderr[-3000:]
    assert recorded.stdout == plain.stdout
    # What it says on stderr is still said (the recorder may add lines of its own there).
    if plain.stderr:
        assert plain.stderr.splitlines()[-1] in recorded.stderr
    if program != "crash":
        assert any(line.startswith("final ") for line in plain.stdout.splitlines())
