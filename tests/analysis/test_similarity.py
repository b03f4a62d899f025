from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr

from analysis.similarity import (
    cosine_matrix,
    linear_cka,
    off_diagonal_mean,
    off_diagonal_stats,
    order_by_clustering,
    order_by_metric,
    over_steps,
    pearson_matrix,
    stats_over_steps,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_cosine_equals_scipy_for_rows_columns_and_non_square(rng):  # S4.6
    x, y = rng.normal(size=(6, 9)), rng.normal(size=(4, 9))
    np.testing.assert_allclose(cosine_matrix(x), 1 - cdist(x, x, "cosine"), atol=1e-12)
    np.testing.assert_allclose(cosine_matrix(x, y), 1 - cdist(x, y, "cosine"), atol=1e-12)
    np.testing.assert_allclose(cosine_matrix(x, of="columns"), 1 - cdist(x.T, x.T, "cosine"), atol=1e-12)
    assert cosine_matrix(x, y).shape == (6, 4)


def test_cosine_takes_torch_tensors_and_stays_within_one():
    found = cosine_matrix(torch.full((3, 784), 0.1))
    assert found.max() <= 1.0
    np.testing.assert_allclose(found, 1, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_cosine_survives_sizes_whose_squares_do_not(scale):
    found = cosine_matrix(np.array([[3.0, 4.0], [4.0, 3.0]]) * scale)
    np.testing.assert_allclose(found[0, 1], 24 / 25, rtol=1e-12)


def test_a_row_without_direction_is_nan_not_zero():  # S1.2
    x = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, np.nan], [np.inf, 1.0], [0.0, 2.0]])
    found = cosine_matrix(x)
    assert np.isnan(found[[1, 2, 3]]).all()
    assert found[0, 4] == 0
    stats = off_diagonal_stats(found)
    assert (stats.pairs, stats.undefined, stats.mean) == (2, 18, 0.0)


def test_pearson_equals_numpy_and_scipy(rng):
    x, y = rng.normal(size=(5, 8)) + 100, rng.normal(size=(3, 8))
    np.testing.assert_allclose(pearson_matrix(x), np.corrcoef(x), atol=1e-12)
    np.testing.assert_allclose(pearson_matrix(x, y)[2, 1], pearsonr(x[2], y[1]).statistic, atol=1e-12)
    np.testing.assert_allclose(pearson_matrix(x, of="columns"), np.corrcoef(x, rowvar=False), atol=1e-12)


def test_pearson_of_a_constant_row_is_nan():
    found = pearson_matrix(np.array([[0.1] * 7, np.arange(7.0)]))
    assert np.isnan(found[0]).all()
    assert found[1, 1] == pytest.approx(1)


def test_cka_equals_the_authors_published_example():
    """The tutorial notebook of Kornblith et al. (google-research, representation_similarity) prints 0.55761."""
    state = np.random.RandomState(1337)
    x = state.randn(100, 10)
    y = state.randn(100, 10) + x
    assert round(linear_cka(x, y), 5) == 0.55761


def test_cka_is_the_same_from_features_and_from_examples(rng):
    x, y = rng.normal(size=(20, 7)), rng.normal(size=(20, 5))
    k, m = (v - v.mean(axis=0) for v in (x, y))
    gram = ((k @ k.T) * (m @ m.T)).sum() / np.linalg.norm(k @ k.T) / np.linalg.norm(m @ m.T)
    assert linear_cka(x, y) == pytest.approx(gram, rel=1e-12)
    wide = np.hstack([x, np.zeros((20, 40))])
    assert linear_cka(wide, y) == pytest.approx(gram, rel=1e-12)


def test_cka_ignores_rotation_and_scale_and_not_every_linear_map(rng):
    x, y = rng.normal(size=(50, 6)), rng.normal(size=(50, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x @ rotation * 3 + 5, y) == pytest.approx(linear_cka(x, y), rel=1e-10)
    assert linear_cka(x @ np.diag([9, 1, 1, 1, 1, 1.0]), y) != pytest.approx(linear_cka(x, y), rel=1e-3)
    assert linear_cka(x, x) == pytest.approx(1)
    assert np.isnan(linear_cka(np.ones((50, 2)), y))


def test_cka_refuses_different_samples(rng):
    with pytest.raises(ValueError, match="as many samples"):
        linear_cka(rng.normal(size=(5, 2)), rng.normal(size=(6, 2)))


def test_off_diagonal_stats_leave_the_diagonal_out():
    matrix = np.array([[1, 0.2, 0.4], [0.2, 1, 0.6], [0.4, 0.6, 1]])
    stats = off_diagonal_stats(matrix)
    assert (stats.mean, stats.min, stats.max) == pytest.approx((0.4, 0.2, 0.6))
    assert stats.std == pytest.approx(np.std([0.2, 0.4, 0.6]))
    with pytest.raises(ValueError, match="square"):
        off_diagonal_stats(np.ones((2, 3)))
    assert np.isnan(off_diagonal_stats(np.ones((1, 1))).mean)


@pytest.mark.parametrize("of", ["rows", "columns"])
def test_off_diagonal_mean_needs_no_matrix(rng, of):
    x = rng.normal(size=(30, 40)) + 0.5
    assert off_diagonal_mean(x, of=of) == pytest.approx(off_diagonal_stats(cosine_matrix(x, of=of)).mean, rel=1e-12)


def test_off_diagonal_mean_leaves_out_what_the_statistics_leave_out(rng):
    x = rng.normal(size=(8, 5))
    x[2] = 0
    x[5, 1] = np.nan
    assert off_diagonal_mean(x) == pytest.approx(off_diagonal_stats(cosine_matrix(x)).mean, rel=1e-12)
    assert np.isnan(off_diagonal_mean(np.zeros((4, 4))))


def test_over_steps_holds_one_array_at_a_time(rng):
    import weakref

    alive: list[weakref.ref] = []

    def arrays():
        for step in range(0, 50, 10):
            assert sum(ref() is not None for ref in alive) <= 1
            array = rng.normal(size=(4, 6))
            alive.append(weakref.ref(array))
            yield step, array

    steps, means = over_steps(arrays())
    assert steps.tolist() == [0, 10, 20, 30, 40]
    assert means.shape == (5,)


def test_stats_over_steps_equal_those_of_each_step(rng):
    series = [(k, rng.normal(size=(5, 6))) for k in (3, 4)]
    steps, stats = stats_over_steps(iter(series))
    assert steps.tolist() == [3, 4]
    assert stats == [off_diagonal_stats(cosine_matrix(x)) for _, x in series]


def test_order_by_metric_puts_nan_last_and_keeps_ties():
    values = [0.2, np.nan, 0.9, 0.2, -1.0]
    assert order_by_metric(values).tolist() == [2, 0, 3, 4, 1]
    assert order_by_metric(values, descending=False).tolist() == [4, 0, 3, 2, 1]


def test_clustering_brings_alike_rows_together(rng):
    centers = np.eye(3, 12)
    labels = np.array([0, 1, 2] * 5)
    rows = centers[labels] + 0.05 * rng.normal(size=(15, 12))
    order = order_by_clustering(rows)
    assert sorted(order) == list(range(15))
    assert (np.diff(labels[order]) != 0).sum() == 2


def test_clustering_accepts_rows_without_direction(rng):
    rows = rng.normal(size=(6, 4))
    rows[2] = 0
    order = order_by_clustering(rows).tolist()
    assert order.index(2) in (0, 5)


@pytest.mark.parametrize(("x", "message"), [(np.ones(3), "shape"), (np.ones((2, 2, 2)), "shape")])
def test_only_matrices_have_rows(x, message):
    with pytest.raises(ValueError, match=message):
        cosine_matrix(x)
