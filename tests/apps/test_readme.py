"""The README's commands and code, executed as a reader would, in the order in which they stand."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apps.cli import INTERRUPTED

HOUSE = Path(__file__).parents[2]
README = (HOUSE / "README.md").read_text("utf-8")
TRAIN = """
import argparse, torch, tracer

def train(epochs=3):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(torch.randn(800, 3), torch.randn(800, 2))
    for _ in range(epochs):
        for x, y in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
            loss = torch.nn.functional.mse_loss(model["encoder"](x), y)
            tracer.capture("layer/win_rate", torch.rand(2))
            optimizer.zero_grad(); loss.backward(); optimizer.step()

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    train(parser.parse_args().epochs)
"""


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("rewind ")]


def python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in `cwd` with Rewind at hand."""
    environment = {**os.environ, "PYTHONPATH": f"{HOUSE}{os.pathsep}{cwd}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def serves(words: list[str], cwd: Path) -> None:
    """Start the app, wait for its address, and end it as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "NO_BROWSER": "1"}
    command = [sys.executable, "-m", "apps.cli", *words]
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("Rewind is at http://127.0.0.1:")
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait() in (0, INTERRUPTED)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_and_block_runs(tmp_path):
    (tmp_path / "my").mkdir()
    for name in ("train.py", "my/trainer.py"):
        (tmp_path / name).write_text(TRAIN)
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        words = shlex.split(command, comments=True)[1:]
        if words[0] == "app":
            serves(words, tmp_path)
            continue
        done = python("-m", "apps.cli", *words, cwd=tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    code = "import torch\nfrom train import train\nwin_rate = torch.rand(2)\n" + "\n".join(blocks("python"))
    (tmp_path / "readme.py").write_text(code)
    done = python("readme.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_make_targets_exist():
    makefile = (HOUSE / "Makefile").read_text("utf-8")
    wanted = set(re.findall(r"`?\bmake (?:PYTHON=\S+ )?([a-z-]+)", "\n".join(blocks("sh"))))
    assert {"demo", "test"} <= wanted
    for target in wanted:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (HOUSE / ".ci" / "run").read_text("utf-8")
