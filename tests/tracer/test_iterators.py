"""Where a loop's iterator stands, read and put back, forwards and backwards (C3)."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import iterators


def advance(iterator, steps):
    return [next(iterator, None) for _ in range(steps)]


def moved(make, here, there):
    """An iterator at `here`, put where another one stands at `there`."""
    other, live = make(), make()
    advance(other, there)
    advance(live, here)
    place = json.loads(json.dumps(iterators.position(other)))
    return iterators.put_position(live, place), live, other


places = st.tuples(st.integers(0, 8), st.integers(0, 8))


@given(st.integers(-20, 20), st.integers(1, 9), st.integers(-4, 4).filter(bool), places)
def test_ranges_go_anywhere_in_both_directions(start, length, step, where):
    span = range(start, start + length * step, step)
    here, there = (min(place, length - 1) for place in where)
    done, live, other = moved(lambda: iter(span), here, there)
    assert done
    assert list(live) == list(other) == list(span)[there:]


@given(st.lists(st.integers(), min_size=1, max_size=8), places, st.sampled_from([list, tuple]))
def test_lists_and_tuples_go_anywhere(items, where, kind):
    here, there = (min(place, len(items) - 1) for place in where)
    done, live, other = moved(lambda: iter(kind(items)), here, there)
    assert done
    assert list(live) == list(other) == items[there:]


@given(places, st.integers(-5, 5))
def test_enumerate_goes_anywhere(where, start):
    done, live, _ = moved(lambda: enumerate("abcdefghij", start), *where)
    assert done
    assert next(live)[0] == start + where[1]


@given(places, st.integers(-5, 5), st.integers(-3, 3))
def test_count_goes_anywhere_by_ones(where, start, step):
    done, live, other = moved(lambda: itertools.count(start, step), *where)
    expected = advance(other, 3)
    if done:
        assert advance(live, 3) == expected
    else:
        assert step != 1


def test_the_step_of_a_range_loop_is_the_one_recorded():
    """What a keyframe in a running loop means: the rest of the loop is run, no more and no less."""
    ran = []
    loop = iter(range(10))
    place = None
    for i in loop:
        ran.append(i)
        if i == 3 and place is None:
            place = iterators.position(loop)
        if i == 7 and len(ran) == 8:
            assert iterators.put_position(loop, place)
    assert ran == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9]


def test_at_the_end_nothing_is_left():
    for make in (lambda: iter(range(3)), lambda: iter([1, 2, 3])):
        live = make()
        list(live)
        other = make()
        assert iterators.put_position(other, iterators.position(live)) or list(other) == [1, 2, 3]


def test_a_place_out_of_reach_is_said_and_nothing_moves():
    exhausted = iter([1, 2])
    list(exhausted)
    fresh = iter([1, 2])
    assert not iterators.put_position(exhausted, iterators.position(fresh))
    other_step = iter(range(0, 10, 3))
    before = iterators.position(other_step)
    assert not iterators.put_position(other_step, iterators.position(iter(range(5))))
    assert iterators.position(other_step)["step"] == before["step"]


@pytest.mark.parametrize(
    "iterator",
    [itertools.cycle([1]), iter({1: 2}), iter({1}), zip([1], [2], strict=True), (x for x in "a"), itertools.count(0.5)],
    ids=lambda i: type(i).__name__,
)
def test_what_has_no_place_says_so(iterator):
    assert iterators.position(iterator) is None


def test_huge_ranges():
    live = iter(range(1 << 80))
    next(live)
    place = iterators.position(live)
    assert place is None or iterators.put_position(live, place)
