from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis import forces


@pytest.fixture
def step():
    rng = np.random.default_rng(1)
    before, targets, moved = (rng.normal(size=(4, 6)) for _ in range(3))
    som = 0.005 * (targets - before)
    return {"before": before, "targets": targets, "moved": moved, "som": som, "after": before + som + moved}


def test_movement_is_taken_apart_again(step):
    som = forces.som_delta(step["before"], step["targets"], 0.005)
    np.testing.assert_allclose(som, step["som"], rtol=1e-14)
    np.testing.assert_allclose(forces.grad_delta(step["before"], step["after"], som), step["moved"], rtol=1e-12)
    np.testing.assert_allclose(forces.grad_delta(step["before"], step["after"]), step["moved"] + som, rtol=1e-12)


def test_decoupled_som_moves_less_where_a_feature_is_novel(step):
    som = forces.som_delta(step["before"], step["targets"], 0.005 * (1 - np.array([0.0, 0.25, 1.0, 0.5])))
    np.testing.assert_allclose(som[0], step["som"][0])
    np.testing.assert_allclose(som[1], 0.75 * step["som"][1])
    assert (som[2] == 0).all()


def test_som_delta_follows_from_what_bcl_captures():
    """The derived movement equals the one that the hook made (bcl.md: som_delta is not captured)."""
    from apps.bcl import nearest_rows, output_strength, pull, score

    torch.manual_seed(0)
    x, w = torch.rand(8, 10), torch.randn(5, 10)
    neighbors = nearest_rows(w, 2)
    for coupled in (True, False):
        scores = score(output_strength(x @ w.T), neighbors, coupled=coupled)
        som = pull(x, w, neighbors, scores, coupled=coupled, som_lr=0.005)
        found = forces.som_delta(w, som.som_targets, som.som_rate)
        np.testing.assert_allclose(found, som.som_delta, rtol=1e-4, atol=1e-8)


def test_cosines_and_their_count():  # S4.5
    x = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    y = np.array([[2.0, 0.0], [-1.0, -1.0], [0.0, 3.0], [1.0, 0.0]])
    cosines = forces.row_cosines(x, y)
    np.testing.assert_allclose(cosines[:3], [1, -1, 0], atol=1e-15)
    assert np.isnan(cosines[3])
    assert forces.agreement(cosines) == forces.Agreement(agree=1, fight=1, neither=2)


def test_ratio_is_of_means_and_says_when_there_is_none():
    assert forces.force_ratio([2.0, 4.0], [1.0, 0.0]) == 6.0
    assert forces.force_ratio([1.0], [0.0]) == float("inf")
    assert np.isnan(forces.force_ratio([0.0], [0.0]))
    assert np.isnan(forces.force_ratio([np.nan], [1.0]))


def test_compare_names_which_gradient_it_means(step):
    masked = np.full((4, 6), 1e-6)
    found = forces.compare(step["before"], step["after"], step["som"], masked)
    som = np.linalg.norm(step["som"], axis=1).mean()
    assert found.ratio_by_masked_gradient == pytest.approx(som / (1e-6 * np.sqrt(6)))
    assert found.ratio_by_movement == pytest.approx(som / np.linalg.norm(step["moved"], axis=1).mean())
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(step["moved"], step["som"], strict=True)]
    np.testing.assert_allclose(found.cosine, expected, rtol=1e-9)
    assert found.agreement.agree == sum(c > 0 for c in expected)


def test_detail_gives_the_four_pictures(step):  # S4.5
    found = forces.detail(step["before"], step["after"], step["som"], 2)
    np.testing.assert_allclose(found.combined, step["after"][2] - step["before"][2], rtol=1e-12)
    np.testing.assert_allclose(found.grad_delta, step["moved"][2], rtol=1e-12)
    np.testing.assert_allclose(found.som_delta, step["som"][2])
    np.testing.assert_allclose(found.weight, step["before"][2])
    for wrong in (-1, 4):
        with pytest.raises(IndexError, match=r"0\.\.3"):
            forces.detail(step["before"], step["after"], step["som"], wrong)
