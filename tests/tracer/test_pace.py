"""How often keyframes are taken."""

from __future__ import annotations

import pytest

from tracer.pace import COST_FACTOR, DAY_SECONDS, SEEK_SECONDS, KeyframePace

GB = 1 << 30


def keyframes(
    pace: KeyframePace, seconds: float, step: float, nbytes: int, disk: int, cost: float = 0.001
) -> tuple[int, int]:
    """Train for so long; return how many keyframes there were, and what they left of the disk."""
    count = 0
    for k in range(int(seconds / step)):
        if pace.due(k):
            pace.took(k, cost)
            disk -= nbytes
            pace.wrote(nbytes, cost, disk)
            count += 1
        pace.stepped(step)
    return count, disk


def test_a_seek_re_executes_a_second_where_there_is_room():
    count, _ = keyframes(KeyframePace(None), 600, 0.1, 1 << 20, 1000 * GB)
    assert count == pytest.approx(600 / SEEK_SECONDS, abs=60)


def test_what_it_takes_to_write_them_counts():
    pace = KeyframePace(None)
    pace.took(0, 0.001)
    pace.wrote(1 << 20, 0.049, 1000 * GB)
    pace.stepped(COST_FACTOR * 0.05 - 0.1)
    assert not pace.due(1)
    pace.stepped(0.2)
    assert pace.due(2)


def test_a_day_leaves_a_third_of_the_disk():
    count, left = keyframes(KeyframePace(None), DAY_SECONDS, 2.0, 100 << 20, 200 * GB)
    assert 60 * GB < left < 80 * GB
    assert count < 1500


def test_a_full_disk_is_not_asked_for_more():
    pace = KeyframePace(None)
    pace.took(0, 0.001)
    pace.wrote(1 << 20, 0.001, 0)
    pace.stepped(DAY_SECONDS)
    assert not pace.due(1)


def test_who_says_how_often_is_obeyed():
    pace = KeyframePace(5)
    pace.took(0, 10.0)
    pace.wrote(1 << 40, 10.0, 1)
    assert [k for k in range(1, 11) if pace.due(k)] == [5, 10]
