"""A training run in a process of its own, for the tests that watch and control it.

PROGRAM takes MODE EPOCHS BATCHES: a small network, by a DataLoader ("loader") or without ("plain"); it ends with the
SHA-256 of its weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HOUSE = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
DEADLINE = 120.0
PROGRAM = """
import hashlib, sys, torch, tracer
mode, epochs, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
x, y = torch.randn(4 * n, 6), torch.randn(4 * n, 2)
data = torch.utils.data.TensorDataset(x, y)
def one(a, b):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(a), b)
    loss.backward()
    tracer.capture("layer/output", model[0].bias)
    optimizer.step()
def main():
    for epoch in range(epochs):
        if mode == "loader":
            for a, b in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
                one(a, b)
        else:
            for i in range(n):
                ids = torch.randint(0, len(x), (4,))
                one(x[ids], y[ids])
main()
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
"""


class LiveRun:
    """A recording in a process of its own; killed, if it still goes on, when the block is left."""

    def __init__(
        self,
        path: Path,
        *options: str,
        mode: str = "loader",
        epochs: int = 2,
        batches: int = 10,
        script: Path | None = None,
        arguments: list[str] | None = None,
    ) -> None:
        self.path = path
        if script is None:
            script = path.with_name("live_program.py")
            script.write_text(PROGRAM)
        self.arguments = [str(script), *([mode, str(epochs), str(batches)] if arguments is None else arguments)]
        command = [sys.executable, "-m", "apps.cli", "record", "--out", str(path), *options, *self.arguments]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def until(self, condition, what: str = "the condition"):
        """Return what `condition()` gives as soon as it is true."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None or condition(), f"the run ended: {self.process.communicate()}"
            time.sleep(0.01)
        raise AssertionError(f"{what} never came")

    def status(self) -> dict:
        """Its status, as any reader gets it."""
        from tracer.errors import NotATraceError
        from tracer.manifest import read
        from tracer.progress import read as read_progress

        try:
            return read_progress(self.path, read(self.path).sessions)
        except NotATraceError:
            return {"status": None, "current_step": None}

    def until_status(self, status: str) -> dict:
        return self.until(lambda: self.status() if self.status()["status"] == status else None, status)

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def undisturbed(path: Path, *arguments: str) -> str:
    """What the program prints without Rewind."""
    done = subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=True, cwd=path
    )
    return done.stdout
