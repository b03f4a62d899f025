"""A replay from another shell: what the recorded program looked up of its environment is as it was."""

from __future__ import annotations

import json

import pytest

from replay import Session, branch
from tracer import open_trace
from tracer.launch import record_script
from tracer.options import Options

HIDDEN = "-".join(("not", "for", "others"))  # this very file is among the trace's sources
SCRIPT = """
import os
import torch

model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=float(os.environ["MY_RATE"]))
for _ in range(4):
    optimizer.zero_grad()
    (model(torch.randn(4, 3)) ** 2).mean().backward()
    optimizer.step()
    if "MY_SHRINK" in os.environ or os.environ.get("MY_API_KEY") is None:
        model.weight.data.mul_(0.5)
"""


@pytest.fixture
def trace(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.setenv("MY_RATE", "0.05")
    monkeypatch.setenv("MY_API_KEY", HIDDEN)
    assert record_script(str(tmp_path / "train.py"), [], out=tmp_path / "t", options=Options(detail="replay")) == 0
    monkeypatch.delenv("MY_RATE")
    monkeypatch.setenv("MY_SHRINK", "1")
    return tmp_path / "t"


def test_it_is_as_it_was(trace, tmp_path):
    with Session(trace) as session:
        assert [verdict.kind for verdict in session.run(4)] == ["verified"] * 4
    branch(trace, tmp_path / "b", at=2, set={"optimizer.lr": "*0.5"})
    with Session(tmp_path / "b") as session:
        assert [verdict.kind for verdict in session.run(2)] == ["verified"] * 2
    with open_trace(tmp_path / "b") as opened:
        assert opened.variables.values["MY_RATE"] == "0.05"


def test_info_says_it(trace):
    from click.testing import CliRunner

    from apps.cli_read import info

    text = CliRunner().invoke(info, [str(trace)]).output
    assert "MY_RATE=0.05, MY_SHRINK not set" in text
    assert "MY_API_KEY set, not kept" in text
    facts = json.loads(CliRunner().invoke(info, [str(trace), "--json"]).output)["variables"]
    assert facts["values"]["MY_RATE"] == "0.05"
    assert "MY_API_KEY" in facts["withheld"]
    assert [str(f) for f in trace.rglob("*") if f.is_file() and HIDDEN.encode() in f.read_bytes()] == []
