from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import top_k_accuracy_score

from analysis import metrics


def test_both_means_of_an_epoch_with_a_short_last_batch():  # S1.1
    values, sizes = [1.0, 1.0, 4.0], [128, 128, 5]
    assert metrics.batch_mean(values) == 2.0
    assert metrics.sample_mean(values, sizes) == pytest.approx((128 + 128 + 20) / 261)
    assert metrics.sample_mean(values, [7, 7, 7]) == metrics.batch_mean(values)


def test_means_keep_nan_and_infinity():  # S1.2
    assert np.isnan(metrics.batch_mean([1.0, np.nan]))
    assert np.isnan(metrics.sample_mean([1.0, np.nan], [1, 1]))
    assert metrics.batch_mean([1.0, np.inf]) == np.inf
    assert np.isnan(metrics.batch_mean([]))
    assert np.isnan(metrics.sample_mean([], []))


def test_means_refuse_sizes_of_another_length():
    with pytest.raises(ValueError, match="batch sizes"):
        metrics.sample_mean([1.0, 2.0], [3])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_sklearn(k):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 10)), rng.integers(0, 10, 200)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(10))
    assert metrics.top_k_accuracy(scores, labels, k) == expected


def test_top_k_does_not_reward_ties_or_nan():
    equal = np.zeros((4, 4))
    assert metrics.top_k_correct(equal, [0, 1, 2, 3], 2).tolist() == [True, True, False, False]
    assert metrics.top_k_correct([[np.nan, 1.0]], [0], 2).tolist() == [False]
    with pytest.raises(ValueError, match="at least 1"):
        metrics.top_k_accuracy(equal, [0, 1, 2, 3], 0)


def test_rmse():
    assert metrics.rmse([1.0, 3.0], [0.0, 0.0]) == pytest.approx(np.sqrt(5))


def test_calibration_error_by_hand_and_by_loops():
    # 10 samples at confidence 0.9 of which 6 are right, 10 at 0.3 of which 3 are: half of |0.6 - 0.9|.
    confidence = [0.9] * 10 + [0.3] * 10
    correct = [1] * 6 + [0] * 4 + [1] * 3 + [0] * 7
    assert metrics.calibration_error(confidence, correct) == pytest.approx(0.15)
    rng = np.random.default_rng(0)
    sure, right = rng.random(500), rng.random(500) < 0.5
    expected = 0.0
    for i in range(15):
        inside = (sure > i / 15) & (sure <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert metrics.calibration_error(sure, right) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(metrics.calibration_error([0.5, np.nan], [1, 0]))


def test_calibration_error_of_a_regression():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.5, 2, 20000)
    honest = metrics.uncertainty_calibration_error(std, rng.normal(size=20000) * std)
    doubled = metrics.uncertainty_calibration_error(std, rng.normal(size=20000) * std * 2)
    assert honest < 0.05
    assert doubled == pytest.approx(1, abs=0.05)
    # One bin by hand: rmv = sqrt((1 + 9) / 2), rmse = sqrt((4 + 0) / 2).
    expected = abs(np.sqrt(5) - np.sqrt(2)) / np.sqrt(5)
    assert metrics.uncertainty_calibration_error([1, 3], [2, 0], bins=1) == pytest.approx(expected)


def test_downsampling_keeps_single_spikes_and_ends():  # S2.4
    series = np.sin(np.arange(1_000_000) / 5e4)
    series[123_457], series[765_432] = 50, -50
    chosen = metrics.downsample(series, 2000)
    assert len(chosen) <= 2002
    assert {0, 123_457, 765_432, 999_999} <= set(chosen.tolist())


def test_downsampling_keeps_gaps_and_infinities_visible():  # S1.2
    series = np.arange(10_000.0)
    series[5000] = np.nan
    series[7001] = np.inf
    series[7002:7005] = -np.inf
    series[7005] = np.nan
    chosen = set(metrics.downsample(series, 100).tolist())
    assert {5000, 7001, 7002, 7005} <= chosen
    assert 7003 not in chosen


def test_a_short_series_is_left_alone():
    assert metrics.downsample([1.0, np.nan, 2.0], 10).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="2 points"):
        metrics.downsample([1.0], 1)


@given(arrays(np.float32, st.integers(1, 400), elements=st.floats(width=32)), st.integers(2, 60))
def test_downsampling_keeps_extremes_of_anything(series, points):
    chosen = metrics.downsample(series, points)
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] == 0
    assert chosen[-1] == len(series) - 1
    kept = series[chosen]
    finite = series[np.isfinite(series)]
    if len(finite):
        assert kept[np.isfinite(kept)].max() == finite.max()
        assert kept[np.isfinite(kept)].min() == finite.min()
    for of_kind in (np.isnan, np.isposinf, np.isneginf):
        assert of_kind(kept).any() == of_kind(series).any()
    assert np.isfinite(kept).sum() <= points + 2


def test_hardest_samples_are_ranked_by_mean_loss():  # S4.9
    ids = [[7, 3, 5], [3, 9, 7]]
    losses = [[1.0, 2.0, 0.5], [4.0, np.nan, 3.0]]
    distinct, means, seen = metrics.hardest_samples(ids, losses)
    assert distinct.tolist() == [9, 3, 7, 5]
    np.testing.assert_array_equal(means, [np.nan, 3.0, 2.0, 0.5])
    assert seen.tolist() == [1, 2, 2, 1]
