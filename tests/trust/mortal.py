"""A process that forks others which record, repair or index a trace until they are killed; driven by `test_kills`.

torch is imported once, here: a death then costs a fraction of a second. Each line of standard input is a job in JSON, its
answer the number of the child; the child notes each step that the loop has passed in the file `acks`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import xxhash

import tracer
from tracer import journal, steps

FEATURES = 20


def train(job: dict) -> None:
    """Train until something ends it; before each step the state that it starts from is noted, for all steps before it."""
    path = Path(job["path"])
    journal.ROLL_STEPS = journal.ROLL_BYTES = 8
    journal.SYNC_SECONDS = 0.05
    steps.LARGE_KEYFRAME = 0
    torch.manual_seed(job["seed"])
    model = torch.nn.Linear(FEATURES, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = torch.utils.data.TensorDataset(torch.randn(64, FEATURES), torch.randn(64, 3))
    first = job["at"] or 0
    more = {"append": True, "at": first} if job["at"] is not None else {}
    with (
        open(job["acks"], "a", buffering=1) as acks,
        tracer.record(path, detail=job["detail"], keyframe_every=5, **more),
    ):
        passed = first
        for _ in range(job["epochs"]):
            for x, y in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
                # The step before is recorded as soon as this one's batch is here.
                weights = xxhash.xxh3_64_hexdigest(model.weight.detach().numpy().tobytes())
                batch = xxhash.xxh3_64_hexdigest(x.numpy().tobytes())
                acks.write(f"{passed} {weights} {batch}\n")
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                tracer.capture("layer/bias", model.bias)
                optimizer.step()
                passed += 1
                if passed == job["ends_at"]:
                    end(job["how"])


def end(how: str) -> None:
    """The ends that a program brings about itself."""
    if how == "exit":
        os._exit(3)
    if how == "raise":
        raise RuntimeError("as told")


def work(job: dict) -> None:
    """What a child does."""
    if job["do"] == "train":
        train(job)
    elif job["do"] == "repair":
        from tracer.repair import repair

        while True:
            repair(job["path"])
            Path(job["path"], "index.duckdb").unlink(missing_ok=True)


def main() -> None:
    """Fork a child for each job."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            try:
                work(job)
            except BaseException:  # noqa: BLE001  whatever ended it, the child does not go on as a server
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


if __name__ == "__main__":
    main()
