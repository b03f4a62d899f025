"""Where to start for a step: nearest keyframe at or before it, then forward. Pure arithmetic, in this one place.

Room: replay. Imports nothing of ours.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Span:
    """The steps of one session that count: first <= k < end."""

    session: int
    first: int
    end: int


@dataclass(frozen=True)
class Plan:
    """How to reach state `k`: put `keyframe` in place (None: start the program of `session` afresh), run `forward` steps."""

    k: int
    session: int
    keyframe: int | None
    forward: int


def plan(k: int, keyframes: Sequence[int], spans: Sequence[Span], *, at: int | None = None) -> Plan:
    """Return the shortest way to state `k`; `at` is the state that the program is in, if it is in a known one.

    `keyframes` is sorted. A keyframe of the session that `k` belongs to is preferred to running on from `at` only if it is nearer.

    >>> plan(7, [0, 5, 10], [Span(0, 0, 20)])
    Plan(k=7, session=0, keyframe=5, forward=2)
    >>> plan(7, [0, 5, 10], [Span(0, 0, 20)], at=6)
    Plan(k=7, session=0, keyframe=6, forward=1)
    >>> plan(3, [10], [Span(0, 0, 20)])
    Plan(k=3, session=0, keyframe=None, forward=3)
    """
    span = span_of(k, spans)
    index = bisect_right(keyframes, k) - 1
    best = keyframes[index] if index >= 0 and keyframes[index] >= span.first else None
    if at is not None and span.first <= at <= k and (best is None or at > best):
        return Plan(k, span.session, at, k - at)
    return Plan(k, span.session, best, k - (span.first if best is None else best))


def span_of(k: int, spans: Sequence[Span]) -> Span:
    """Return the span that step `k` belongs to; the state after the last step belongs to the last."""
    return next((s for s in reversed(spans) if s.first <= k), spans[0])


def segments(first: int, end: int, keyframes: Sequence[int]) -> list[tuple[int, int]]:
    """Split the steps first <= k < end at the keyframes: pieces that can be re-executed independently of each other.

    >>> segments(3, 12, [0, 5, 10])
    [(3, 5), (5, 10), (10, 12)]
    """
    cuts = [first, *(k for k in keyframes if first < k < end), end]
    return [(a, b) for a, b in pairwise(cuts) if a < b]
