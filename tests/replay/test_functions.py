"""A function that is replayed in this very process, as in a notebook: it writes nothing of the user's."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

import tracer
from replay import Session


def train():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    best = float("inf")
    for step in range(6):
        optimizer.zero_grad()
        loss = (model(torch.randn(4, 3)) ** 2).mean()
        loss.backward()
        optimizer.step()
        if loss.item() < best:
            best = loss.item()
            torch.save(model.state_dict(), "best.pt")
        with open("log.txt", "a") as file:
            print(step, loss.item(), file=file)
        if os.path.exists("old.txt"):
            os.remove("old.txt")
        if step == 4:
            model.load_state_dict(torch.load("best.pt"))


def test_the_users_files_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "online")
    Path("old.txt").write_text("old")
    with tracer.record("t", keyframe_every=2):
        train()
    Path("old.txt").write_text("written since")
    files = {name: Path(name).read_bytes() for name in ("best.pt", "log.txt", "old.txt")}

    with Session("t", program=train) as session:
        for k in (0, 4, 1):
            session.seek(k)
            assert [verdict.kind for verdict in session.run(2)] == ["verified"] * 2
        assert str(tmp_path / "log.txt") in session.held_back
        # What the user does meanwhile is done.
        Path("mine.txt").write_text("mine")
        other = threading.Thread(target=Path("others.txt").write_text, args=("theirs",))
        other.start()
        other.join()
        assert (tmp_path / "mine.txt").read_text() == "mine"

    assert {name: Path(name).read_bytes() for name in files} == files
    assert Path("mine.txt").read_text() == "mine"
    assert Path("others.txt").read_text() == "theirs"
    assert os.environ["WANDB_MODE"] == "online"
