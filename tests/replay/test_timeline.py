"""From where to which state: the nearest keyframe, then forward; pure arithmetic (C3)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from replay.timeline import Plan, Span, plan, segments, span_of

LAST = 60


@st.composite
def histories(draw):
    """Sessions that follow each other without a gap, and keyframes anywhere in them."""
    cuts = sorted(draw(st.sets(st.integers(1, LAST - 1), max_size=3)))
    edges = [0, *cuts, LAST]
    spans = [Span(i, a, b) for i, (a, b) in enumerate(pairwise(edges))]
    keyframes = sorted(draw(st.sets(st.integers(0, LAST), max_size=8)))
    return spans, keyframes


@given(histories(), st.integers(0, LAST), st.none() | st.integers(0, LAST))
def test_every_plan_arrives(history, k, at):
    spans, keyframes = history
    way = plan(k, keyframes, spans, at=at)
    span = span_of(k, spans)
    start = way.keyframe if way.keyframe is not None else span.first
    assert way.k == k == start + way.forward
    assert way.forward >= 0
    assert way.session == span.session
    assert way.keyframe is None or way.keyframe in keyframes or way.keyframe == at
    assert start >= span.first


@given(histories(), st.integers(0, LAST), st.none() | st.integers(0, LAST))
def test_no_other_way_is_shorter(history, k, at):
    spans, keyframes = history
    first = span_of(k, spans).first
    starts = [f for f in [*keyframes, *([at] if at is not None else [])] if first <= f <= k]
    assert plan(k, keyframes, spans, at=at).forward == k - max(starts, default=first)


@given(histories(), st.integers(0, LAST))
def test_of_a_superseded_session_nothing_is_used(history, k):
    spans, keyframes = history
    way = plan(k, keyframes, spans)
    if way.keyframe is not None:
        assert way.keyframe >= span_of(k, spans).first


@given(st.integers(0, LAST), st.integers(0, LAST), st.sets(st.integers(0, LAST)))
def test_segments_are_the_steps_cut_at_the_keyframes(a, b, frames):
    pieces = segments(a, b, sorted(frames))
    assert [k for x, y in pieces for k in range(x, y)] == list(range(a, b))
    assert all(x < y for x, y in pieces)
    assert all(x == a or x in frames for x, _ in pieces)
    assert not any(x < f < y for x, y in pieces for f in frames)


def test_going_on_is_taken_where_it_is_no_longer_than_a_keyframe():
    spans = [Span(0, 0, 20)]
    assert plan(10, [0, 5, 10], spans, at=9).keyframe == 10
    assert plan(9, [0, 5, 10], spans, at=7) == Plan(9, 0, 7, 2)
    assert plan(9, [0, 5, 10], spans, at=10).keyframe == 5
