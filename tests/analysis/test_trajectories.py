from __future__ import annotations

import numpy as np
import pytest

from analysis.similarity import cosine_matrix
from analysis.trajectories import (
    alive,
    cosine_to_initial,
    died_at,
    first_lasting,
    pairwise,
    pairwise_over_steps,
    status,
)


def test_cosine_to_initial_of_an_array_and_of_an_iterator():  # S4.7
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 3, 4))
    found = cosine_to_initial(weights)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found[0], 1)
    for t in range(5):
        np.testing.assert_allclose(found[t], np.diag(cosine_matrix(weights[t], weights[0])), atol=1e-14)
    np.testing.assert_array_equal(cosine_to_initial(iter(weights)), found)
    np.testing.assert_array_equal(cosine_to_initial(iter(weights[1:]), weights[0]), found[1:])
    assert cosine_to_initial([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("condition", "first"),
    [
        ([0, 0, 1, 1, 1], 2),
        ([1, 1, 0, 1, 1], 3),
        ([1, 1, 1, 1, 1], 0),
        ([1, 1, 1, 1, 0], None),
        ([0, 0, 0, 0, 1], 4),
        ([], None),
    ],
)
def test_first_step_of_a_lasting_condition(condition, first):
    assert first_lasting(condition) == first
    steps = np.arange(len(condition)) * 10 + 7
    assert first_lasting(condition, steps) == (None if first is None else first * 10 + 7)


def test_lasting_may_have_to_last():
    assert first_lasting([0, 0, 1, 1], at_least=2) == 2
    assert first_lasting([0, 0, 1, 1], at_least=3) is None


def test_died_at_is_when_the_win_rate_stays_under_the_threshold():  # S4.9
    rates = np.array([[0.2, 0.001, 0.005, 0.2], [0.001, 0.2, 0.005, np.nan], [0.001, 0.001, 0.01, np.nan]])
    assert died_at(rates, [100, 101, 102]) == [101, 102, None, None]


def test_status_and_alive_agree_with_the_feature_table():  # S4.4
    rates = [0.0099, 0.01, 0.05, 0.0501, np.nan]
    assert status(rates) == ["dead", "contender", "contender", "winner", "unknown"]
    assert alive(rates) == 3


def test_pairwise_of_the_watched():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 6, 4))
    found = pairwise_over_steps(iter(weights), [5, 0])
    assert found.shape == (3, 2, 2)
    np.testing.assert_allclose(found[1], pairwise(weights[1], [5, 0]))
    np.testing.assert_allclose(found[1][0, 1], cosine_matrix(weights[1])[5, 0])
    assert pairwise_over_steps([], [1]).shape == (0, 1, 1)
