"""`make soak`: for some minutes a run is recorded, killed, resumed, repaired, verified and read, in an order that chance makes.

`python -m tests.trust.soak [MINUTES] [SEED]`. One reader and one app stay open over all of it and follow each trace; their memory and
their open files, and those of each recording, must not grow. Prints what was done, and ends with 1 where anything was wrong.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.apps.test_api import Api
from tests.trust.test_kills import HOW, Mortals, check, lines_of, record_and_die, sealed
from tracer import open_trace
from tracer.damage import damages

_MOST_GROWTH = 60 << 20
_MOST_FILES = 8


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Soak:
    """One trace after the other, each treated badly several times."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.mortals = Mortals()
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.steps = self.number = 0

    def trace(self) -> None:
        """Record, and then whatever comes; at the end all is verified."""
        self.number += 1
        detail = self.dice.choice(("full", "replay", "metrics"))
        path, acks = self.folder / f"t{self.number}", self.folder / f"acks{self.number}"
        job = {"path": str(path), "acks": str(acks), "detail": detail, "seed": self.number, "at": None}
        record_and_die(self.mortals, self.dice, job, self.dice.choice(HOW))
        self.done["recorded"] += 1
        at = None
        steps = check(path, acks, detail)
        with open_trace(path) as reader:
            api = Api(path)
            try:
                for _ in range(self.dice.randrange(2, 7)):
                    at, steps = self.act(path, acks, detail, job, at, steps)
                    self.look(reader, api, steps)
            finally:
                api.close()
        sealed(path)
        if check(path, acks, detail, at) != steps:
            self.wrong.append(f"{path.name}: the number of steps has changed")
        self.wrong += damages(path)
        self.steps += steps
        self.done["verified"] += 1
        shutil.rmtree(path, ignore_errors=True)  # a sealer that outlived its process may still look around in it
        acks.unlink()

    def act(self, path: Path, acks: Path, detail: str, job: dict, at: int | None, steps: int) -> tuple[int | None, int]:
        """Do one thing to the trace; return where its last session began, and how many steps it has."""
        what = self.dice.choice(("resumed", "resumed", "repaired", "repair killed", "index removed"))
        self.done[what] += 1
        if what == "resumed":
            acks.write_text("".join(f"{' '.join(line)}\n" for line in lines_of(acks) if int(line[0]) < steps))
            at = steps
            how = self.dice.choice(HOW)
            record_and_die(self.mortals, self.dice, {**job, "at": at, "seed": self.dice.randrange(10**6)}, how)
            steps = check(path, acks, detail, at)
        elif what == "repaired":
            sealed(path)
        elif what == "repair killed":
            with self.mortals.living({"do": "repair", "path": str(path)}) as child:
                time.sleep(self.dice.random() * 0.4)
                os.kill(child, 9)
        else:
            (path / "index.duckdb").unlink(missing_ok=True)
        if check(path, acks, detail, at) != steps:
            self.wrong.append(f"{path.name}: {what}, and the number of steps has changed")
        return at, steps

    def look(self, reader, api: Api, steps: int) -> None:
        """What was open all the while sees what is there now."""
        reader.refresh()
        if reader.steps != steps:
            self.wrong.append(f"{reader.path.name}: an open reader sees {reader.steps} of {steps} steps")
        if reader.sql("select count(*) from steps").fetchall() != [(steps,)]:
            self.wrong.append(f"{reader.path.name}: SQL of an open reader does not count {steps} steps")
        status, answer = api.get("state", step=max(0, steps - 1))
        self.done["asked the app"] += 1
        if status != 200 and steps:
            self.wrong.append(f"{reader.path.name}: the app answers {status} {answer} of step {steps - 1}")


def main(minutes: str = "5", seed: str = "0") -> int:
    """Soak; return the exit code."""
    end = time.monotonic() + 60 * float(minutes)
    began: tuple[int, int] | None = None
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), int(seed))
        while time.monotonic() < end:
            try:
                soak.trace()
            except Exception:  # noqa: BLE001  whatever went wrong is told at the end
                soak.wrong.append(f"t{soak.number}: {traceback.format_exc(limit=-3)}")
            gc.collect()
            if soak.number == 4:  # what is made once is there
                began = resident(), open_files()
        soak.mortals.close()
        grown = resident() - (began or (0, 0))[0], open_files() - (began or (0, 0))[1]
        if began is not None and (grown[0] > _MOST_GROWTH or grown[1] > _MOST_FILES):
            soak.wrong.append(f"grown by {grown[0] >> 20} MB and {grown[1]} open files over {soak.number - 4} traces")
    print(f"{soak.number} traces, {soak.steps} steps: " + ", ".join(f"{n} {what}" for what, n in soak.done.items()))
    print(
        f"memory {resident() >> 20} MB, grown by {grown[0] / 2**20:.1f} MB and {grown[1]} open files since the fourth"
    )
    for line in soak.wrong:
        print("WRONG:", line)
    return bool(soak.wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
