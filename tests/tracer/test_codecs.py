from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tracer import codecs
from tracer.packing import word_size
from tracer.ranges import Ranges

WORDS = [np.uint8, np.uint16, np.uint32, np.uint64]


def unzigzag(small: np.ndarray) -> np.ndarray:
    one = small.dtype.type(1)
    return (small >> one) ^ np.negative(small & one)


def rows(dtype, at_most: int = 40):
    shape = st.tuples(st.integers(1, at_most), st.integers(1, 5))
    return shape.flatmap(lambda s: arrays(dtype, s))


@pytest.mark.parametrize("dtype", WORDS)
@given(st.data())
def test_every_mapping_is_undone_for_any_bits(dtype, data):
    words = data.draw(rows(dtype))
    assert np.array_equal(codecs.unorder(codecs.order(words)), words)
    assert np.array_equal(unzigzag(codecs.zigzag(words)), words)


@given(arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
def test_order_is_that_of_the_floats(values):
    ordered = codecs.order(np.sort(values).view(np.uint32))
    # -0.0 and 0.0 are equal as floats, and neighbours as integers.
    assert np.all(ordered[:-1].astype(np.int64) <= ordered[1:].astype(np.int64) + 1)


def test_small_differences_become_small_numbers():
    found = codecs.zigzag(np.array([0, -1, 1, -2, 2], np.int32).view(np.uint32))
    assert found.tolist() == [0, 1, 2, 3, 4]


@given(arrays(np.uint8, 30), arrays(np.uint8, 30))
def test_middle_does_not_overflow(a, b):
    assert codecs.middle(a, b).tolist() == [(int(x) + int(y)) // 2 for x, y in zip(a, b, strict=True)]


@given(st.integers(0, 100))
def test_plan_refers_only_to_rows_that_can_be_decoded_before(count):
    refs = dict(enumerate(codecs.plan(count)))
    depths = codecs.needed(refs, range(count))
    assert len(depths) == count
    assert all(depths[a] < depths[row] and depths[b] < depths[row] for row, (a, b) in refs.items() if b >= 0)


@given(st.integers(1, 300))
def test_no_state_is_more_than_a_few_rows_away(count):
    refs = dict(enumerate(codecs.plan(count)))
    assert max(len(codecs.needed(refs, [row])) for row in refs) <= 6


def coded(words: np.ndarray) -> np.ndarray:
    ordered = codecs.order(words)
    rows = []
    for i, (a, b) in enumerate(codecs.plan(len(words))):
        predicted = a >= 0
        rows.append(codecs.encode(ordered[i], ordered[a], ordered[b] if b >= 0 else None) if predicted else words[i])
    return np.stack(rows)


@pytest.mark.parametrize("dtype", WORDS)
@given(st.data())
def test_states_come_back_bit_for_bit(dtype, data):
    # NaN payloads, -0.0 and denormals are among the drawn bits.
    words = data.draw(rows(dtype))
    refs = dict(enumerate(codecs.plan(len(words))))
    wanted = data.draw(st.lists(st.integers(0, len(words) - 1), min_size=1, unique=True))
    decoder = codecs.Decoder(refs, wanted)
    assert np.array_equal(decoder.decode(coded(words)[decoder.rows]), words[wanted])


def test_what_the_attributes_say_decodes_a_row():
    """The three lines of DECODING, done by hand with Python's integers."""
    words = np.array([[0x3F800000], [0x3F800007], [0xBF800001]], np.uint32)
    refs, stored = codecs.plan(3), coded(words)

    def order(w: int) -> int:
        return ~w & 0xFFFFFFFF if w >> 31 else w | 1 << 31

    def unzigzag(z: int) -> int:
        return (z >> 1) ^ -(z & 1)

    def ordered(i: int) -> int:
        a, b = refs[i]
        if a < 0:
            return order(int(stored[i, 0]))
        base = ordered(a) if b < 0 else (ordered(a) + ordered(b)) // 2
        return (unzigzag(int(stored[i, 0])) + base) % 2**32

    assert [ordered(i) for i in range(3)] == [order(int(w)) for w in words[:, 0]]


def test_word_is_that_of_most_bytes():
    assert word_size({4: 400, 8: 8}) == 4
    assert word_size({2: 100, 4: 40}) == 2
    assert word_size({16: 100}) == 4
    assert word_size({}) == 4


@given(st.lists(st.integers(-5, 60)))
def test_ranges_are_sets(numbers):
    ranges = Ranges.of(numbers)
    assert list(ranges) == sorted(set(numbers)) == ranges.array().tolist()
    assert len(ranges) == len(set(numbers))
    assert all((n in ranges) == (n in numbers) for n in range(-7, 63))
