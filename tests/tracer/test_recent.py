"""A flight recorder's condition, asked at every step (B7): numbers say what arrays would."""

from __future__ import annotations

import math
import random

import pytest

from tracer.condition import Recent, parse

CONDITIONS = [
    "isnan(loss) or loss > 5 * median(loss, 100)",
    "loss > 3 * median(loss, 11) and not lr < 0.5",
    "max(loss, 3) < min(lr, 3)",
    "-loss < -1",
    "loss / lr > 2",
    "loss",
    "not loss",
    "0.2 < loss < 1",
    "loss != loss",
    "loss * lr - 1",
    "isfinite(loss / lr) or isinf(lr)",
    "norm(loss) > 0.5 and abs(lr)",
    "(loss > 1) + (lr > 1)",
]
NOT_PLAIN = ["mean(loss, 12) > 0.5", "loss % 2 > 1", "loss ** 2 > 1", "sqrt(loss) > 1", "median(loss * 2, 12) > 1"]
VALUES = [math.nan, math.inf, -math.inf, 0.0, -0.0]


def values(seed):
    """Two series of numbers of all kinds."""
    dice = random.Random(seed)
    return [
        {n: dice.choice([*VALUES, *(dice.random() * 2 for _ in range(8))]) for n in ("loss", "lr")} for _ in range(300)
    ]


@pytest.mark.parametrize("text", [*CONDITIONS, *NOT_PLAIN])
def test_numbers_say_what_arrays_would(text):
    plain, arrays = Recent(parse(text)), Recent(parse(text))
    arrays._plain = None
    assert (plain._plain is None) == (text in NOT_PLAIN)
    found = [(plain.holds(step.__getitem__), arrays.holds(step.__getitem__)) for step in values(1)]
    assert {a for a, _ in found} == {True, False}
    assert [a for a, _ in found] == [b for _, b in found]
