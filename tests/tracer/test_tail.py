from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import DamageError, NotATraceError
from tracer.tail import MAGIC, TailReader, TailWriter, checksum, read_tail


def write(path, count: int = 3) -> list[int]:
    """`count` records; returns where each ends."""
    tail = TailWriter(path)
    ends = []
    for k in range(count):
        data = [bytes([k]) * 10, b"more"]
        tail.append({"kind": "step", "step": k, "loss": float("nan")}, [("data", data, checksum(data))])
        ends.append(tail.size)
    tail.close()
    return ends


def test_records_come_back(tmp_path):
    write(tmp_path / "t")
    records = list(read_tail(tmp_path / "t"))
    assert [r.header["step"] for r in records] == [0, 1, 2]
    assert records[1].read("data") == b"\x01" * 10 + b"more"
    assert records[0].header["loss"] != records[0].header["loss"]
    with pytest.raises(KeyError):
        records[0].read("grads")


def test_an_existing_file_is_never_overwritten(tmp_path):
    write(tmp_path / "t")
    with pytest.raises(FileExistsError):
        TailWriter(tmp_path / "t")


def test_every_torn_end_leaves_the_whole_records(tmp_path):
    ends = write(tmp_path / "t")
    whole = (tmp_path / "t").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "torn").write_bytes(whole[:size])
        found = list(read_tail(tmp_path / "torn"))
        assert len(found) == sum(end <= size for end in ends), size


@settings(max_examples=60)
@given(st.data())
def test_a_flipped_bit_is_never_taken_for_the_truth(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "t"
    write(path)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(len(MAGIC), len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(whole))
    with pytest.raises(DamageError):
        _ = [r.read("data") for r in read_tail(path)]


def test_zeros_behind_a_power_cut_are_a_torn_end(tmp_path):
    write(tmp_path / "t")
    with open(tmp_path / "t", "ab") as file:
        file.write(bytes(500))
    assert len(list(read_tail(tmp_path / "t"))) == 3


def test_a_foreign_file_is_no_tail(tmp_path):
    (tmp_path / "t").write_bytes(b"PNG, or so, and more of it")
    with pytest.raises(NotATraceError):
        list(read_tail(tmp_path / "t"))


def test_a_reader_sees_what_is_new_only(tmp_path):
    tail = TailWriter(tmp_path / "t")
    reader = TailReader(tmp_path / "t")
    assert list(reader.new_records()) == []
    tail.append({"kind": "a"})
    assert [r.kind for r in reader.new_records()] == ["a"]
    tail.append({"kind": "b"})
    tail.append({"kind": "c"})
    assert [r.kind for r in reader.new_records()] == ["b", "c"]
    assert reader.torn_bytes == 0
    tail.close()
    reader.close()


def test_what_was_seen_stays_readable_when_the_file_is_removed(tmp_path):
    write(tmp_path / "t")
    reader = TailReader(tmp_path / "t")
    records = list(reader.new_records())
    (tmp_path / "t").unlink()
    assert records[2].read("data") == b"\x02" * 10 + b"more"
    reader.close()


def test_a_refused_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):  # S0.4
    tail = TailWriter(tmp_path / "t")
    tail.append({"kind": "a"})
    real = os.write

    def full(fd, data):
        real(fd, bytes(data)[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda fd, buffers: 5)
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="space"):
            tail.append({"kind": "b"})
    tail.append({"kind": "c"})
    tail.close()
    assert [r.kind for r in read_tail(tmp_path / "t")] == ["a", "c"]


def test_more_buffers_than_one_call_takes(tmp_path):
    tail = TailWriter(tmp_path / "t")
    tail.append({"kind": "a"}, [("data", [b"x"] * 3000, None)])
    tail.close()
    assert next(read_tail(tmp_path / "t")).read("data") == b"x" * 3000
