"""FORMAT.md is enough: a trace is read with json, zarr and pyarrow alone, and gives what the reader gives. # B8"""

from __future__ import annotations

import json
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
import zarr

from tests.tracer.synthetic import make_trace
from tracer import open_trace
from tracer.errors import FormatVersionError

TOP = {4: 1 << 31}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    path = tmp_path_factory.mktemp("format")
    truth = make_trace(path / "sealed", 40, 4, 30, roll=16, grads=True)
    make_trace(path / "tail", 40, 4, 30, roll=16, grads=True, seal=False)
    return path, truth


def order(word: int) -> int:
    return word ^ 0xFFFFFFFF if word & TOP[4] else word | TOP[4]


def decoded(stored, refs, row: int) -> list[int]:
    """The words of a row, as FORMAT.md says, one by one."""
    a, b = (int(n) for n in refs[row])
    if a < 0:
        return [int(w) for w in stored[row]]
    one = [order(w) for w in decoded(stored, refs, a)]
    two = one if b < 0 else [order(w) for w in decoded(stored, refs, b)]
    words = []
    for z, x, y in zip(stored[row].tolist(), one, two, strict=True):
        value = ((z >> 1) ^ -(z & 1)) + (x if b < 0 else (x + y) // 2)
        value %= 2**32
        words.append(value ^ TOP[4] if value & TOP[4] else value ^ 0xFFFFFFFF)
    return words


def test_a_sealed_trace(both):
    path, truth = both[0] / "sealed", both[1]
    facts = json.loads((path / "trace.json").read_text())
    assert facts["format"] == 1
    root = zarr.open(str(path / "tensors.zarr"), mode="r")
    layout = root["params"].attrs["layout"]
    entry = next(e for e in layout["entries"] if e["name"] == "encoder.weight")
    stored, refs = root["params"][:], root[root["params"].attrs["from"]][:]
    for commit in sorted((path / "metrics").glob("*.json")):
        said = json.loads(commit.read_text())
        shift = said["first_row"] - said["session_first_step"]
        for first, last in said["params"][0]["steps"]:
            for k in range(first, last + 1, 5):
                data = struct.pack(f"<{stored.shape[1]}I", *decoded(stored, refs, k + shift))
                found = np.frombuffer(data[entry["offset"] :][: entry["nbytes"]], "<f4").reshape(entry["shape"])
                assert np.array_equal(found, truth.weight[k]), k
        for name, file in said["files"].items():
            data = commit.with_name(f"{commit.stem}.{name}.parquet").read_bytes()
            assert xxhash.xxh3_64_hexdigest(data) == file["xxh3"]
        rows = pq.read_table(commit.with_name(f"{commit.stem}.replay.parquet")).to_pylist()
        for row in rows:
            header = json.loads(row["record"])
            leaf = header["batch"]["v"][0]
            images = root[
                said["samples"][leaf["pool"]]["array"] if leaf["pool"] in said["samples"] else "samples/float32-30"
            ]
            ids = np.frombuffer(row["ids0"], "<u4")
            assert np.array_equal(images.get_orthogonal_selection(ids.astype(int)), truth.batches[row["step"]])
        assert (
            xxhash.xxh3_64_hexdigest(commit.read_bytes().replace(f',"sum":"{said["sum"]}"'.encode(), b""))
            == said["sum"]
        )


def test_a_tail(both):
    path, truth = both[0] / "tail", both[1]
    steps = []
    for file in sorted((path / "tail").glob("*.log")):
        data = file.read_bytes()
        assert data[:8] == b"REWINDT1"
        place = 8
        while place < len(data):
            head_len, body_len, short, check = struct.unpack_from("<IQIQ", data, place)
            assert xxhash.xxh3_64_intdigest(data[place : place + 12]) & 0xFFFFFFFF == short
            head = data[place + 24 : place + 24 + head_len]
            assert xxhash.xxh3_64_intdigest(head) == check
            header, body = json.loads(head), place + 24 + head_len
            at = body
            for name, nbytes, proof in header["sections"]:
                section = data[at : at + nbytes]
                assert proof is None or xxhash.xxh3_64_hexdigest(section) == proof
                if header["kind"] == "step" and name == "weights":
                    k = header["step"]
                    assert section.startswith(truth.weight[k + 1].tobytes())
                    assert header["hashes"][0] == xxhash.xxh3_64_intdigest(truth.weight[k + 1].tobytes())
                    steps.append(k)
                at += nbytes
            assert at == body + body_len
            place = at
    assert steps == list(range(40))


def test_tensorstore_reads_the_arrays(both):
    import tensorstore

    path = both[0] / "sealed" / "tensors.zarr"
    for name in ("params", "fingerprints", "grads", "samples/float32-30", "captures/bcl/win_rate"):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}
        found = tensorstore.open(spec, read=True).result().read().result()
        assert np.array_equal(found, zarr.open(str(path / name), mode="r")[:]), name


def test_a_newer_format_is_refused_in_one_line(tmp_path):
    (tmp_path / "trace.json").write_text('{"format": 2, "of": "the future"}')
    with pytest.raises(FormatVersionError, match="install a newer Rewind") as error:
        open_trace(tmp_path)
    assert "\n" not in str(error.value)
