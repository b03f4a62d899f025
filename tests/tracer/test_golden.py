"""Traces of every format version ever written open forever: `tests/golden/v<N>`, never written anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tracer.sealer import seal
from tracer.trace import Trace, open_trace

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("v*"))


def digest(values) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def golden(request, tmp_path) -> Path:
    """A copy: opening must not need to write, sealing may."""
    return Path(shutil.copytree(request.param, tmp_path / "golden"))


def check(trace: Trace, expected: dict) -> None:
    for k, wanted in expected["states"].items():
        assert digest(trace.state(int(k))["encoder.weight"]) == wanted
    for k, wanted in expected["batches"].items():
        assert digest(trace.batch(int(k))[0]) == wanted
    for k, wanted in expected["captures"].items():
        assert digest(trace.captures["bcl/som_targets"][int(k)]) == wanted
    assert trace.steps == len(expected["batches"])
    assert trace.sql("select count(*), max(session) from steps").fetchall() == [(trace.steps, 1)]
    assert trace.sql("select count(*) from all_steps where superseded").fetchall() == [(4,)]
    assert trace.sql("select step from steps where isnan(loss)").fetchall() == [(7,)]
    assert trace.keyframe(trace.keyframes[0])


def test_there_is_one_of_every_version():
    from tracer.manifest import FORMAT

    assert [path.name for path in GOLDEN] == [f"v{n}" for n in range(1, FORMAT + 1)]


def test_it_opens_as_it_was_written_and_after_sealing(golden):  # B8
    expected = json.loads((golden / "expected.json").read_text())
    with open_trace(golden) as trace:
        check(trace, expected)
    seal(golden)
    with open_trace(golden) as trace:
        check(trace, expected)
