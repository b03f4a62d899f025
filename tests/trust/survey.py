"""All that a trace can be asked, and whether what it answers is what was recorded: the measure of the damage tests."""

from __future__ import annotations

import hashlib
import json
import math

import duckdb
import numpy as np
import torch

from tracer import listing, open_trace
from tracer.errors import RewindError
from tracer.index import worded

VIEWS = ("steps", "all_steps", "metrics", "features", "captures", "keyframes", "sessions", "epochs", "events")
DAMAGED = "damaged"


def digest(value) -> str:
    """Any answer, in short: every bit of it counts."""
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()[:16]


def _feed(hasher, value) -> None:
    if isinstance(value, torch.Tensor):
        data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode() + data)
    elif isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else value
        hasher.update(f"({len(value)}".encode())
        for item in items:
            _feed(hasher, item)
    else:
        hasher.update(value if isinstance(value, bytes) else repr(value).encode())


def ask(question) -> str:
    """The digest of an answer, or that the trace says that it is damaged. Any other error is one."""
    try:
        return digest(question())
    except RewindError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 2000
        return f"{DAMAGED}: {text}"


def rows_of(trace, view: str) -> set[str]:
    """The rows of a view, as a set: damage may cost some, it may change none."""
    found = trace.sql(f"select * from {view}")
    names = found.columns
    return {
        json.dumps([[n, _plain(v)] for n, v in zip(names, row, strict=True) if v is not None])
        for row in found.fetchall()
    }


def _plain(value):
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    return str(value)


def survey(path) -> dict[str, object]:
    """Every answer: {question: digest, or damage}, and rows as sets."""
    answers: dict[str, object] = {}
    try:
        trace = open_trace(path)
    except RewindError as error:
        return {"open": f"{DAMAGED}: {error}"}
    with trace:
        answers["open"] = "opened"
        _steps(trace, answers)
        for view in VIEWS:
            try:
                answers[f"view {view}"] = rows_of(trace, view)
            except RewindError as error:
                answers[f"view {view}"] = f"{DAMAGED}: {error}"
            except duckdb.Error as error:
                # index.duckdb has sums of its own, which DuckDB checks when the rows are read.
                answers[f"view {view}"] = (
                    f"{DAMAGED}: {worded(error, path)}" if "index.duckdb" in str(worded(error, path)) else repr(error)
                )
        answers["damage"] = list(trace.damage())
    answers["listed"] = ask(lambda: [{k: v for k, v in f.items() if k != "bytes"} for f in listing.ls(path)])
    return answers


def _steps(trace, answers) -> None:
    for number in range(TRUE_STEPS + 1):
        answers[f"state {number}"] = ask(lambda k=number: dict(trace.state(k)) if trace.has_state(k) else "none")
        answers[f"fingerprint {number}"] = ask(lambda k=number: trace.fingerprint(k))
        answers[f"keyframe {number}"] = ask(lambda k=number: _keyframe(trace, k))
    for number in range(TRUE_STEPS):
        answers[f"record {number}"] = ask(lambda k=number: trace.record(k))
        answers[f"batch {number}"] = ask(lambda k=number: trace.batch(k))
        answers[f"grads {number}"] = ask(lambda k=number: trace.grads(k))
        for key in ("bcl/win_rate", "bcl/som_targets", "bcl/image_coverage"):
            answers[f"capture {key} {number}"] = ask(lambda k=number, key=key: trace.captures[key][k])
        answers[f"late {number}"] = ask(lambda k=number: _late(trace, k))
    answers["series"] = ask(lambda: trace.captures["bcl/win_rate"].read())
    answers["weights"] = ask(lambda: trace.weights("encoder.weight", rows=1))


def _late(trace, k):
    return trace.captures["late/row"][k] if "late/row" in trace.captures else "none"


def _keyframe(trace, k):
    if k not in trace.keyframes:
        return "none"
    tree, read = trace.keyframe(k)
    return [tree, *(read(i) for i in range(3))]


TRUE_STEPS = 20
