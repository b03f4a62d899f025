"""All that a trace can be asked, and whether what it answers is what was recorded: the measure of the damage tests."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import torch

from tests.tracer.synthetic import MATRICES, VECTORS
from tracer import beside, files, listing, manifest, open_trace, stdin, variables
from tracer.damage import damages
from tracer.errors import DamageError, RewindError
from tracer.index import worded

if TYPE_CHECKING:
    from collections.abc import Iterable

VIEWS = ("steps", "all_steps", "metrics", "features", "captures", "keyframes", "sessions", "epochs", "events")
DAMAGED = "damaged"
TRUE_STEPS = 20


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


PARTS = ("steps", "views", "listed", "files", "sums")
"""What can be asked by itself; `sums` is `rewind verify --checksums`."""
KEYS = [f"bcl/{name}" for name in (*VECTORS, *MATRICES, "image_coverage")]


def part_of(question: str) -> str | None:
    """The part that a question belongs to; None of one that is asked with each."""
    if question in ("open", "damage"):
        return None
    return "views" if question.startswith("view ") else question if question in PARTS else "steps"


def survey(path, parts: Iterable[str] = PARTS, steps: int = TRUE_STEPS) -> dict[str, object]:
    """Every answer of these parts, of a trace of so many steps: {question: digest, or damage}, and rows as sets."""
    answers: dict[str, object] = {}
    try:
        trace = open_trace(path)
    except RewindError as error:
        return {"open": f"{DAMAGED}: {error}"}
    with trace:
        answers["open"] = "opened"
        if "steps" in parts:
            _steps(trace, answers, steps)
        for view in VIEWS if "views" in parts else ():
            answers[f"view {view}"] = _view(trace, view)
        answers["damage"] = list(trace.damage())
    if "listed" in parts:
        answers["listed"] = ask(lambda: [{k: v for k, v in f.items() if k != "bytes"} for f in listing.ls(path)])
    if "files" in parts:
        answers["files"] = ask(lambda: [_files(path, facts) for facts in manifest.read(path).sessions])
    if "sums" in parts:
        try:
            answers["sums"] = damages(path)
        except RewindError as error:
            answers["sums"] = [f"{DAMAGED}: {error}"]
    return answers


def _files(path, facts):
    """What a replay asks of files/: where it is told that something is wrong there, it is."""
    for line in [*beside.of_session(path, facts)]:
        raise DamageError(line)
    _, events, last = files.events(path, facts.session)
    names = sorted({event[3] for event in events if isinstance(event[3], str)})
    kept = [(name, files.content(path, name)) for name in names]
    for name, place in kept:
        if place is None:
            raise DamageError(f"files/{name} is lost")
    found = asdict(variables.read(path, facts.session))
    return [events, last, stdin.read(path, facts.session), found, [place.read_bytes() for _, place in kept]]


def _view(trace, view: str) -> set[str] | str:
    try:
        return rows_of(trace, view)
    except RewindError as error:
        return f"{DAMAGED}: {error}"
    except duckdb.Error as error:
        # index.duckdb has sums of its own, which DuckDB checks when the rows are read.
        said = str(worded(error, trace.path))
        return f"{DAMAGED}: {said}" if "index.duckdb" in said else repr(error)


def _steps(trace, answers, steps: int) -> None:
    for number in range(steps + 1):
        answers[f"state {number}"] = ask(lambda k=number: dict(trace.state(k)) if trace.has_state(k) else "none")
        answers[f"fingerprint {number}"] = ask(lambda k=number: trace.fingerprint(k))
        answers[f"keyframe {number}"] = ask(lambda k=number: _keyframe(trace, k))
    for number in range(steps):
        answers[f"record {number}"] = ask(lambda k=number: trace.record(k))
        answers[f"batch {number}"] = ask(lambda k=number: trace.batch(k))
        answers[f"grads {number}"] = ask(lambda k=number: trace.grads(k))
        for key in ("bcl/win_rate", "bcl/som_targets", "bcl/image_coverage"):
            answers[f"capture {key} {number}"] = ask(lambda k=number, key=key: trace.captures[key][k])
        answers[f"late {number}"] = ask(lambda k=number: _late(trace, k))
    for key in KEYS:
        answers[f"series {key}"] = ask(lambda key=key: trace.captures[key].read())
    answers["weights"] = ask(lambda: trace.weights("encoder.weight", rows=1))


def _late(trace, k):
    return trace.captures["late/row"][k] if "late/row" in trace.captures else "none"


def _keyframe(trace, k):
    if k not in trace.keyframes:
        return "none"
    tree, read = trace.keyframe(k)
    return [tree, *(read(i) for i in range(3))]
