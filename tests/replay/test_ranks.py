"""A run of two ranks, as torchrun starts them: each records, and one is replayed with the other beside it. # B9"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from replay import Session, branch
from tests.replay.conftest import HOUSE
from tracer import ranks
from tracer.errors import MissingDataError, NotATraceError
from tracer.trace import open_trace

SCRIPT = """
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

dist.init_process_group("gloo")
rank = int(os.environ["LOCAL_RANK"])
torch.manual_seed(1 + rank)
data = TensorDataset(torch.arange(64.0).reshape(32, 2) / 64, torch.arange(32.0).reshape(32, 1) / 32)
model = DistributedDataParallel(nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.2), nn.Linear(6, 1)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=4, sampler=sampler)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    if rank == 0:
        torch.save(model.module.state_dict(), "snapshot.pt")
    dist.barrier()
dist.destroy_process_group()
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a recorded run's ranks."""
    home = tmp_path_factory.mktemp("ranks")
    (home / "train.py").write_text(SCRIPT)
    shared = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1729"}
    shared |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", "from apps.cli import main; main()", "record", "--keyframe-every", "3", "train.py"]
    started = [
        subprocess.Popen(
            command, cwd=home, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return home / "runs" / "train-1"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_replayed_with_the_other(run, rank):
    saved = (run.parent.parent / "snapshot.pt").read_bytes()
    with Session(run / f"rank-{rank}") as session:
        assert session.trace.steps == 8
        for k in (5, 1) if rank else (0,):
            session.seek(k)
            assert [verdict.kind for verdict in session.run(3)] == ["verified"] * 3
    assert (run.parent.parent / "snapshot.pt").read_bytes() == saved


def test_each_rank_has_its_own_data(run):
    with open_trace(run / "rank-0") as one, open_trace(run / "rank-1") as other:
        assert not one.batch(0)[0].equal(other.batch(0)[0])
        assert one.state(8).fingerprint == other.state(8).fingerprint


def test_what_one_rank_alone_cannot_do_is_said_in_a_line(run, tmp_path):
    with pytest.raises(MissingDataError, match="one rank of 2"):
        branch(run / "rank-0", tmp_path / "b", at=2, set={"optimizer.lr": "*0.5"})
    with pytest.raises(NotATraceError, match="rank-0 is one"):
        open_trace(run)
    alone = tmp_path / "rank-0"
    alone.symlink_to(run / "rank-0")
    with pytest.raises(MissingDataError, match=r"replayed together; rank 1: .* is no trace"):
        Session(alone)


def test_all_ranks_agree_on_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "runs" / "a-1").mkdir(parents=True)
    (tmp_path / "runs" / "a-1" / "trace.json").write_text("{}")

    def shared(rank):
        monkeypatch.setenv("RANK", str(rank))
        path = ranks.place(ranks.shared_path(Path("runs"), "a"))
        path.mkdir()
        return path

    assert [shared(rank) for rank in (1, 0, 1, 0)] == [
        Path("runs/a-2/rank-1"),
        Path("runs/a-2/rank-0"),
        Path("runs/a-3/rank-1"),
        Path("runs/a-3/rank-0"),
    ]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a-1", "a-2", "a-3"]
