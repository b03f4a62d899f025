"""Deaths at random moments: every step that the loop had passed is there, bit for bit, none twice; the trace opens without
repair, is repaired, and goes on. # S0.4, S1.3

A few in CI, REWIND_KILLS=200 for all (`make trust`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tracer import open_trace
from tracer.repair import repair

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("REWIND_KILLS", "3"))
SEED = int(os.environ.get("REWIND_SEED", "0"))
DEADLINE = 60.0 if KILLS < 20 else 600.0  # many run in the background, at low priority


class Mortals:
    """The process that forks."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.trust.mortal"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def start(self, job: dict) -> int:
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self) -> int:
        return int(self.process.stdout.readline())

    @contextlib.contextmanager
    def living(self, job: dict):
        """A child at work; it is dead afterwards, also where the test has failed."""
        child = self.start(job)
        try:
            yield child
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            raise
        finally:
            self.ended()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(DEADLINE)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def mortals():
    found = Mortals()
    yield found
    found.close()


def lines_of(acks: Path) -> list[list[str]]:
    """The notes that are whole."""
    text = acks.read_text() if acks.exists() else ""
    return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def record_and_die(mortals, dice, job: dict, how: str) -> None:
    """Record until a random moment; then the child dies, as `how` says."""
    acks = Path(job["acks"])
    before = len(lines_of(acks))
    ends_at = (job["at"] or 0) + dice.randrange(1, 40)
    with mortals.living({**job, "do": "train", "how": how, "ends_at": ends_at, "epochs": 10_000}) as child:
        if how in ("exit", "raise"):
            wait_for(lambda: ended(child), "it never ended")
            return
        # A run that is asked to end before its first step is over leaves no trace.
        wait_for(lambda: len(lines_of(acks)) > before + dice.randrange(how == "term", 40), "the run never began")
        time.sleep(dice.random() * 0.02)  # a moment anywhere within a step
        if how == "group":
            os.killpg(child, signal.SIGKILL)  # the sealer with it, as a machine that is switched off
        else:
            os.kill(child, signal.SIGTERM if how == "term" else signal.SIGKILL)
        wait_for(lambda: ended(child), f"{how} did not end it")


def ended(child: int) -> bool:
    """Whether a process is gone, or waits for its parent to ask how it ended."""
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def check(path: Path, acks: Path, detail: str, at: int | None = None) -> int:
    """Whether all that was passed is there, once, and as it was. Return the number of steps."""
    notes = lines_of(acks)
    with open_trace(path) as trace:
        recorded = trace.recorded_steps
        passed = int(notes[-1][0])
        assert trace.steps >= passed, f"{passed} steps were passed, {trace.steps} are there"
        assert recorded.runs == (((0, trace.steps - 1),) if trace.steps else ())
        rows = trace.sql("select count(*), count(distinct step), max(step) from steps").fetchall()
        assert rows == [(trace.steps, trace.steps, trace.steps - 1 if trace.steps else None)]
        for k, weights, batch in notes:
            step = int(k)
            # A session that passed no step has superseded nothing: the state is still the one before.
            if detail == "full" and not at == step == trace.steps:
                found = trace.state(step)["weight"].numpy()
                assert xxhash.xxh3_64_hexdigest(np.ascontiguousarray(found).tobytes()) == weights, step
            if detail != "metrics" and step < trace.steps:
                assert xxhash.xxh3_64_hexdigest(trace.batch(step)[0].numpy().tobytes()) == batch, step
        return trace.steps


HOW = ("kill", "group", "kill", "term", "exit", "raise", "group", "kill")


@pytest.mark.parametrize("number", range(KILLS))
def test_whatever_kills_a_recording(mortals, tmp_path, number):
    dice = random.Random(SEED * 1000 + number)
    detail = ("full", "replay", "full", "metrics")[number % 4]
    path, acks = tmp_path / "t", tmp_path / "acks"
    job = {"path": str(path), "acks": str(acks), "detail": detail, "seed": number, "at": None}
    record_and_die(mortals, dice, job, HOW[number % len(HOW)])
    steps = check(path, acks, detail)
    if number % 2:
        sealed(path)
        check(path, acks, detail)
    if number % 3 == 0:
        # A repair, too, may be killed anywhere.
        with mortals.living({"do": "repair", "path": str(path)}) as child:
            time.sleep(dice.random() * 0.5)
            os.kill(child, signal.SIGKILL)
        check(path, acks, detail)
    # The run is resumed where it was, and dies again.
    acks.write_text("".join(f"{' '.join(line)}\n" for line in lines_of(acks) if int(line[0]) < steps))
    record_and_die(mortals, dice, {**job, "at": steps, "seed": number + 1}, HOW[(number + 1) % len(HOW)])
    check(path, acks, detail, steps)
    sealed(path)
    assert check(path, acks, detail, steps) >= steps
    assert not [line for line in repair(path) if "missing" in line or "damaged" in line]


def sealed(path: Path) -> None:
    """Repair, once the sealer of the dead process is done, which it outlives by a moment."""
    from tracer.errors import UsageError

    def repaired() -> bool:
        try:
            repair(path)
        except UsageError:
            return False
        return True

    wait_for(repaired, "it is still being recorded, says repair")
