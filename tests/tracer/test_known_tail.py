"""What is known of a tail is kept once, grows, and is never another file's or another moment's."""

from __future__ import annotations

import json
import os
import struct

import pytest
import xxhash

import tracer
from tests.tracer.synthetic import make_trace
from tracer import known_tail, tail
from tracer.errors import DamageError
from tracer.open_segment import OpenSegment
from tracer.tail import MAGIC, TailWriter, read_tail


def step(k: int, **more) -> dict:
    return {"kind": "step", "step": k, "session": 0, "fingerprint": f"{k + 1:016x}", "captures": [], **more}


@pytest.fixture
def writer(tmp_path):
    writer = TailWriter(tmp_path / "0000-000000.log")
    writer.append({"kind": "begin", "session": 0, "seq": 0, "first_step": 0, "first_row": 0, "time": 0.0})
    for k in range(3):
        writer.append(step(k), [("weights", [bytes(8)], None)] if k == 1 else [])
    yield writer
    writer.close()


def seen(path) -> OpenSegment:
    segment = OpenSegment(path, (0, 0))
    segment.refresh()
    return segment


def test_who_opens_a_live_run_takes_no_step_apart_and_the_next_finds_it_done(tmp_path, monkeypatch):
    make_trace(tmp_path / "t", steps=60, inputs=8, features=4, seal=False, close=False)
    taken, found = [], []
    real, make = tail.Record._apart, tail.Record.__init__
    monkeypatch.setattr(tail.Record, "_apart", lambda self: (taken.append(self.kind), real(self))[1])
    monkeypatch.setattr(tail.Record, "__init__", lambda self, *a: (found.append(1), make(self, *a))[1])
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.steps == 60
        assert trace.stored_states.runs == ((0, 60),)
    assert len(found) > 60
    assert set(taken) == {"begin"}
    found.clear()
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.record(59)["step"] == 59
    assert not found


def test_each_sees_it_as_it_was_when_he_looked(writer):
    early = seen(writer.path)
    described = {"key": "c", "dtype": "uint8", "shape": [1], "dims": None}
    writer.append(step(3, captures=[described]), [("grads", [b"g"], None), ("capture0", [b"c"], None)])
    writer.append({"kind": "keyframe", "step": 4, "buffers": []})
    writer.append({"kind": "close", "status": "finished", "time": 1.0})
    late = seen(writer.path)
    assert (early.steps.runs, early.states.runs, early.count) == (((0, 2),), ((2, 2),), 4)
    assert (early.closed, early.close_record, early.keyframes, early.captures) == (False, None, (), {})
    assert not early.grad_steps.runs
    assert (late.steps.runs, late.count, late.keyframes, late.closed) == (((0, 3),), 7, (4,), True)
    assert late.captures["c"][0].steps.runs == ((3, 3),)
    assert early.refresh()
    assert early.captures == late.captures


def test_a_capture_that_goes_on_ends_where_the_view_does(writer):
    described = {"key": "c", "dtype": "uint8", "shape": [1], "dims": None}
    writer.append(step(3, captures=[described]), [("capture0", [b"c"], None)])
    early = seen(writer.path)
    writer.append(step(4, captures=[described]), [("capture0", [b"d"], None)])
    assert seen(writer.path).captures["c"][0].steps.runs == ((3, 4),)
    assert early.captures["c"][0].steps.runs == ((3, 3),)


def test_what_was_cut_or_rewritten_is_read_anew(writer):
    assert seen(writer.path).count == 4
    whole = writer.path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(MAGIC) + 30] ^= 1
    writer.path.write_bytes(flipped)
    os.utime(writer.path, ns=(1, 1))
    assert isinstance(seen(writer.path).damage, DamageError)
    writer.path.write_bytes(whole)
    os.utime(writer.path, ns=(2, 2))
    again = seen(writer.path)
    assert (again.count, again.damage) == (4, None)
    os.truncate(writer.path, len(whole) - 1)
    assert seen(writer.path).count == 3


def test_a_new_file_of_the_same_name_is_another(writer):
    assert seen(writer.path).count == 4
    writer.path.unlink()
    other = TailWriter(writer.path)
    other.append({"kind": "begin", "session": 0, "seq": 0, "first_step": 7, "first_row": 0, "time": 0.0})
    other.close()
    assert (seen(writer.path).first_step, seen(writer.path).count) == (7, 1)


def test_a_removed_file_is_let_go(writer):
    before = seen(writer.path)
    files = len(os.listdir("/proc/self/fd"))
    writer.path.unlink()
    known_tail.forget_removed()
    assert before.state_records[2].read("weights") == bytes(8)
    del before
    assert len(os.listdir("/proc/self/fd")) == files - 1


def test_the_order_in_which_a_header_is_written_says_nothing(tmp_path):
    nested = [["weights", 8, None]]
    headers = [
        {"kind": "step", "step": 5, "batch": {"sections": nested}, "sections": [["ids0", 2, None]]},
        {"kind": "step", "step": 5, "sections": [["ids0", 2, None]], "batch": {"sections": nested}},
        {"sections": [["ids0", 2, None]], "batch": {"kind": "state", "step": 6}, "step": 5, "kind": "step"},
    ]
    lines = [json.dumps(h, separators=s).encode() for h in headers for s in ((",", ":"), (", ", ": "))]
    (tmp_path / "t").write_bytes(MAGIC + b"".join(map(framed, lines)))
    for record in read_tail(tmp_path / "t"):
        assert (record.kind, record.step, record.names) == ("step", 5, {"ids0"})
        assert record.read("ids0") == b"xy"


@pytest.mark.parametrize(
    "head", [b"{}", b"[]", b'{"kind":"step","step":1}', b'{"kind":"step","step":1,"sections":[["a",3,null]]}']
)
def test_a_header_that_says_nothing_sensible_is_damage(tmp_path, head):
    (tmp_path / "t").write_bytes(MAGIC + framed(head))
    with pytest.raises(DamageError):
        _ = [record.header for record in read_tail(tmp_path / "t")]


def framed(head: bytes, body: bytes = b"xy") -> bytes:
    lengths = struct.pack("<IQ", len(head), len(body))
    sums = struct.pack("<IQ", xxhash.xxh3_64_intdigest(lengths) & 0xFFFFFFFF, xxhash.xxh3_64_intdigest(head))
    return lengths + sums + head + body
