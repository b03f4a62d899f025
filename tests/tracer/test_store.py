from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.synthetic import make_trace
from tracer import arrays as names
from tracer import blosc_frame
from tracer.arrays import Arrays
from tracer.errors import DamageError, MissingDataError
from tracer.packing import PackedLayout
from tracer.store import ArraySpec, create_array, open_array
from tracer.trace import open_trace


def spec(shape, dtype="<f4", chunk=None, shard=None) -> ArraySpec:
    chunk = chunk or (2, *shape[1:])
    shard = shard or (8, *(-(-n // c) * c for n, c in zip(shape[1:], chunk[1:], strict=True)))
    return ArraySpec(shape, np.dtype(dtype), chunk, shard, tuple(f"d{i}" for i in range(len(shape))))


def some(shape, dtype="<f4") -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * 100).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [((20,), (4,)), ((20, 7), (1, 3)), ((20, 7), (4, 7)), ((9, 5, 3), (2, 2, 3)), ((5, 2, 3, 4), (1, 1, 3, 4))],
)
def test_zarr_reads_what_we_write(tmp_path, shape, chunk):  # B8
    values = some(shape)
    array = create_array(tmp_path / "a", spec(shape, chunk=chunk))
    array.put_rows(np.arange(shape[0]), values)
    array.flush()
    opened = zarr.open(str(tmp_path / "a"), mode="r")
    assert np.array_equal(opened[:], values)
    assert opened.metadata.dimension_names == tuple(f"d{i}" for i in range(len(shape)))
    assert np.array_equal(open_array(tmp_path / "a").rows(np.arange(shape[0])), values)


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "<u2", "<f2", "<i8", "<f8", "<c8", "<c16"])
def test_every_type_is_one_that_zarr_knows(tmp_path, dtype):
    values = some((6, 3), dtype)
    array = create_array(tmp_path / "a", spec((6, 3), dtype))
    array.put_rows(np.arange(6), values)
    array.flush()
    opened = zarr.open(str(tmp_path / "a"), mode="r")
    assert opened.dtype == values.dtype
    assert np.array_equal(opened[:], values)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.booleans())
def test_rows_appended_in_any_portions(tmp_path_factory, portions, height, fast):
    path = tmp_path_factory.mktemp("append") / "a"
    total = sum(portions)
    values = some((total, 5))
    done = 0
    for count in portions:
        array = create_array(path, spec((done + count, 5), chunk=(height, 2), shard=(height * 2, 6)))
        array.put_rows(np.arange(done, done + count), values[done : done + count], fast=fast)
        array.flush()
        done += count
    assert np.array_equal(zarr.open(str(path), mode="r")[:], values)
    assert np.array_equal(open_array(path).rows(np.arange(total)[::-1], (1, 4)), values[::-1, 1:4])


@pytest.mark.parametrize("length", [0, 1, 8, 9, 100])
def test_a_long_row_of_bytes(tmp_path, length):
    data = np.arange(length, dtype=np.uint8)
    described = ArraySpec((length,), np.dtype("u1"), (8,), (max(8, -(-length // 8) * 8),), ("byte",), typesize=4)
    array = create_array(tmp_path / "a", described)
    array.put_all(data)
    array.flush()
    assert np.array_equal(open_array(tmp_path / "a").whole(), data)
    assert np.array_equal(zarr.open(str(tmp_path / "a"), mode="r")[:], data)


def test_a_replaced_shard_begins_with_the_same_bytes(tmp_path):
    """So that a reader with the old index in hand finds under it what it says."""
    array = create_array(tmp_path / "a", spec((3, 4)))
    array.put_rows(np.arange(3), some((3, 4)))
    array.flush()
    shard = tmp_path / "a" / "c" / "0" / "0"
    reader = open_array(tmp_path / "a")
    before = reader.rows(np.arange(3))
    old = shard.read_bytes()
    array.grow((8, 4))
    array.put_rows(np.arange(3, 8), some((5, 4)))
    array.flush()
    payload = len(old) - 16 * 4 - 4
    assert shard.read_bytes()[:payload] == old[:payload]
    assert np.array_equal(reader.rows(np.arange(3)), before)


def test_a_reader_finds_rows_that_came_later(tmp_path):
    array = create_array(tmp_path / "a", spec((8, 4)))
    array.put_rows(np.arange(2), some((2, 4)))
    array.flush()
    reader = open_array(tmp_path / "a")
    with pytest.raises(MissingDataError):
        reader.rows(np.array([5]))
    array.put_rows(np.arange(2, 8), some((6, 4)))
    array.flush()
    assert np.array_equal(reader.rows(np.array([5])), some((6, 4))[3:4])


def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path):
    values = some((4, 3))
    array = create_array(tmp_path / "a", spec((4, 3), shard=(4, 3)))
    array.put_rows(np.arange(4), values)
    array.flush()
    shard = tmp_path / "a" / "c" / "0" / "0"
    whole = shard.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        shard.write_bytes(bytes(damaged))
        with pytest.raises(DamageError):
            open_array(tmp_path / "a").rows(np.arange(4))
    shard.write_bytes(whole[:20])
    with pytest.raises(DamageError):
        open_array(tmp_path / "a").rows(np.arange(4))


@pytest.mark.parametrize("text", ["", "{}", '{"codecs": []}', "[1]", "nonsense"])
def test_damaged_metadata_is_damage(tmp_path, text):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(DamageError):
        open_array(tmp_path)


def test_keys_become_safe_paths(tmp_path):
    root = tmp_path / "tensors.zarr" / "captures"
    for key in (
        "bcl/win_rate",
        "../../etc/x",
        "/abs",
        "a//b",
        "c/zarr.json",
        ".hidden",
        "ünï/ö",
        "__x",
        "a b:c\\d",
        "",
    ):
        path = (root / names.safe_path(key)).resolve()
        assert path.is_relative_to(root)
        assert "c" not in path.relative_to(root).parts
    assert names.safe_path("bcl/win_rate") == "bcl/win_rate"


def test_a_key_that_is_another_ones_folder_gets_an_array_of_its_own(tmp_path):
    arrays = Arrays(tmp_path)
    for key in ("a/b", "a", "a/b/d"):
        described = names.capture_spec(key, "float32", (3,), None, 16)
        name = arrays.named(f"captures/{names.safe_path(key)}", {"key": key}, "~")
        array = arrays.create(name, described)
        array.grow((1, 3))
        array.put_rows(np.array([0]), np.full((1, 3), len(key), np.float32))
        array.flush()
    for key in ("a/b", "a", "a/b/d"):
        name = Arrays(tmp_path).named(f"captures/{names.safe_path(key)}", {"key": key}, "~")
        assert Arrays(tmp_path).get(name).rows(np.array([0]))[0, 0] == len(key)


def layout(*shapes) -> PackedLayout:
    offset, entries = 0, []
    for i, shape in enumerate(shapes):
        size = 4 * int(np.prod(shape))
        entries.append(
            {"name": f"t{i}", "dtype": "float32", "shape": shape, "offset": offset, "nbytes": size, "param": True}
        )
        offset += -(-size // 8) * 8
    return PackedLayout.of({"word": 4, "nbytes": offset, "entries": entries})


@pytest.mark.parametrize("shapes", [[(64, 784), (64,)], [(3,)], [], [(1, 50_000)], [(2, 3, 3, 3)], [(0, 4)], [()]])
def test_chunks_of_states_fit_any_layout(tmp_path, shapes):
    packed = layout(*shapes)
    described = names.params_spec(packed, 3, 16)
    array = create_array(tmp_path / "params", described)
    words = np.arange(3 * packed.width, dtype=np.uint32).reshape(3, -1)
    for row in range(3):
        array.put_row(row, words[row])
    array.flush()
    assert np.array_equal(array.words([2, 0], 0, packed.width), words[[2, 0]])
    assert np.array_equal(zarr.open(str(tmp_path / "params"), mode="r")[:], words)
    if len(shapes) == 2:
        assert described.chunk[1] % 784 == 0


def test_layouts_go_through_json():
    packed = layout((2, 3), ())
    assert PackedLayout.of(packed.table()) == packed


def test_without_blosc_s_own_function_it_is_read_all_the_same(tmp_path, monkeypatch):
    values = some((6, 50), "<u4")
    array = create_array(tmp_path / "a", spec((6, 50), "<u4", (1, 20), (6, 60)))
    array.put_rows(np.arange(6), values)
    array.flush()
    found = []
    for native in (blosc_frame._native, lambda: None):
        monkeypatch.setattr(blosc_frame, "_native", native)
        opened = open_array(tmp_path / "a")
        found += [opened.words([4, 1], 10, 45), opened.rows(np.array([4, 1]), (10, 45))]
    assert blosc_frame._native() is None
    for each in found:
        assert np.array_equal(each, values[[4, 1], 10:45])


def test_a_frame_of_another_size_or_with_garbage_in_it_is_refused():
    values = np.repeat(np.arange(4, dtype="<u4"), 25)
    frame = np.frombuffer(blosc_frame.compress(values, fast=True), np.uint8)
    for wrong, room in ((frame, 99), (frame[:-1], 100), (np.append(frame, 0), 100)):
        with pytest.raises(ValueError, match="it holds"):
            blosc_frame.inflate(wrong.astype(np.uint8), np.empty(room, "<u4"))
    garbage = frame.copy()
    garbage[20:] = 255
    with pytest.raises(ValueError, match="decompress"):
        blosc_frame.inflate(garbage, np.empty(100, "<u4"))


@pytest.mark.parametrize("pair", [[700, -1], [1, 1], [-7, 2]])
def test_rows_predicted_from_none_of_the_segment_are_damage(tmp_path, pair):
    make_trace(tmp_path / "t", steps=20, inputs=4, features=4, captures=False)
    origins = Arrays(tmp_path / "t").get("params_from")
    origins.put_rows(np.array([1]), np.array([pair]))
    origins.flush()
    with open_trace(tmp_path / "t") as trace:
        with pytest.raises(DamageError, match="params_from"):
            trace.state(1)
        trace.state(8)
