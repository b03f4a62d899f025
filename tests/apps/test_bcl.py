"""BCL against a slow reference that follows the table's wording loop by loop, and the hook against plain autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from apps import bcl as module
from apps.bcl import BCL, nearest_rows, output_strength, pull, rank_scores, score, weighted_average

B, D, F, K = 6, 5, 7, 2


def reference(x: np.ndarray, a: np.ndarray, w: np.ndarray, nbrs: list[list[int]], *, coupled: bool) -> dict:
    """The table, one sum at a time. Nothing is shared with the code under test."""
    rank = np.zeros((B, D))
    for b in range(B):
        for d in range(D):
            rival = max(abs(a[b, n]) for n in nbrs[d])
            rank[b, d] = 1 / (1 + math.exp(-5 * (abs(a[b, d]) - rival)))
    win = [sum(rank[b, d] for b in range(B)) / B for d in range(D)]
    cover = [sum(rank[b, d] for d in range(D)) for b in range(B)]
    novelty = [sum(rank[b, d] / cover[b] for b in range(B)) / sum(rank[b, d] for b in range(B)) for d in range(D)]
    effective = [win[d] * novelty[d] for d in range(D)]
    contender = [4 * win[d] * (1 - win[d]) for d in range(D)]
    attraction = [1 - effective[d] for d in range(D)]
    mask, som_weight, targets, delta = (np.zeros(s) for s in ((B, D), (B, D), (D, F), (D, F)))
    for d in range(D):
        local, global_ = np.zeros(F), np.zeros(F)
        local_sum = global_sum = 0.0
        for b in range(B):
            best = max(range(D), key=lambda i, b=b: rank[b, i])
            near = 1.0 if d in nbrs[best] else 0.0
            local_novelty = 1 / (sum(rank[b, n] for n in nbrs[d]) + 1)
            wl = (1 - rank[b, d]) * near * local_novelty
            wg = (1 - rank[b, d]) / (cover[b] + 1e-8)
            local, local_sum = local + wl * x[b], local_sum + wl
            global_, global_sum = global_ + wg * x[b], global_sum + wg
            mask[b, d] = rank[b, d] * novelty[d] * effective[d] if coupled else rank[b, d]
            som_weight[b, d] = (1 - rank[b, d]) * (attraction[d] + near * contender[d])
        local = local / local_sum if local_sum else w[d]
        global_ = global_ / global_sum if global_sum else w[d]
        targets[d] = (contender[d] * local + attraction[d] * global_) / (contender[d] + attraction[d] + 1e-8)
        delta[d] = 0.005 * (targets[d] - w[d]) * (1 if coupled else 1 - novelty[d])
    return {
        "rank_score": rank,
        "win_rate": win,
        "image_coverage": cover,
        "feature_novelty": novelty,
        "effective_win": effective,
        "gradient_weight": effective,
        "contender_weight": contender,
        "attraction_weight": attraction,
        "grad_mask": mask,
        "grad_magnitude": mask.sum(axis=0),
        "som_targets": targets,
        "som_delta": delta,
        "som_magnitude": som_weight.sum(axis=0),
    }


def neighbor_loops(w: np.ndarray, k: int) -> list[list[int]]:
    def cosine(i: int, j: int) -> float:
        return float(w[i] @ w[j] / (np.linalg.norm(w[i]) * np.linalg.norm(w[j])))

    return [sorted((j for j in range(len(w)) if j != i), key=lambda j, i=i: -cosine(i, j))[:k] for i in range(len(w))]


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.random((B, F)), rng.normal(size=(B, D)), rng.normal(size=(D, F))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(
        module.tracer, "capture", lambda key, value, *, dims=None: seen.update({key: value.clone()}), raising=False
    )
    return seen


@pytest.mark.parametrize("coupled", [True, False])
def test_every_row_of_the_table_equals_the_loops(problem, coupled):
    x, a, w = problem
    nbrs = neighbor_loops(w, K)
    expected = reference(x, a, w, nbrs, coupled=coupled)
    tx, ta, tw, tn = (torch.tensor(v) for v in (x, a, w, nbrs))
    scores = score(output_strength(ta), tn, coupled=coupled)
    som = pull(tx, tw, tn, scores, coupled=coupled, som_lr=0.005)
    for name, value in expected.items():
        owner = scores if hasattr(scores, name) else som
        np.testing.assert_allclose(getattr(owner, name).numpy(), value, rtol=1e-12, atol=1e-15, err_msg=name)


def test_neighbours_are_the_highest_cosines_and_never_oneself(problem):
    w = problem[2]
    found = nearest_rows(torch.tensor(w), K).tolist()
    assert found == neighbor_loops(w, K)
    # Row 0 twice as long is still row 0's direction: cosine, not the dot product, decides.
    w[1] = 0.001 * w[0]
    assert nearest_rows(torch.tensor(w), 1)[0].tolist() == [1]


def test_neighbours_of_a_layer_with_fewer_features_than_asked_for():
    assert nearest_rows(torch.randn(3, 4), 8).shape == (3, 2)


def test_strength_of_a_conv_output_is_the_mean_over_space():
    output = torch.tensor([[[[1.0, -3.0], [0.0, 0.0]], [[-2.0, -2.0], [2.0, 2.0]]]])
    assert output_strength(output).tolist() == [[1.0, 2.0]]


def test_rank_score_of_equals_is_one_half():
    assert rank_scores(torch.ones(2, 3), torch.tensor([[1], [2], [0]])).tolist() == [[0.5] * 3] * 2


def test_an_average_without_weight_is_ones_own_row():
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weights = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    found = weighted_average(weights, torch.tensor([[0.0, 0.0], [4.0, 8.0]]), own)
    assert found.tolist() == [[1.0, 2.0], [3.0, 6.0]]


def test_a_feature_that_scores_nowhere_gives_no_nan():
    strength = torch.tensor([[0.0, 100.0, 99.0]]).expand(4, 3).contiguous()
    neighbors = torch.tensor([[1], [2], [1]])
    scores = score(strength, neighbors, coupled=True)
    assert scores.rank_score[:, 0].max() == 0
    som = pull(torch.rand(4, 5), torch.rand(3, 5), neighbors, scores, coupled=True, som_lr=0.005)
    for value in (*vars(scores).values(), *vars(som).values()):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("coupled", [True, False])
def test_the_hook_masks_the_gradient_and_moves_the_weight_in_backward(captured, coupled):
    torch.manual_seed(0)
    layer = nn.Linear(F, D).double()
    before = layer.weight.detach().clone()
    BCL(layer, coupled=coupled, som_lr=0.005, neighbors=K)
    x = torch.rand(B, F, dtype=torch.float64)
    output = layer(x)
    grad_output = torch.randn(B, D, dtype=torch.float64)
    output.backward(grad_output)

    nbrs = neighbor_loops(before.numpy(), K)
    expected = reference(x.numpy(), output.detach().numpy(), before.numpy(), nbrs, coupled=coupled)
    masked = grad_output.numpy() * expected["grad_mask"]
    np.testing.assert_allclose(layer.weight.grad.numpy(), masked.T @ x.numpy(), rtol=1e-10)
    np.testing.assert_allclose(layer.bias.grad.numpy(), masked.sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(layer.weight.detach().numpy(), before.numpy() + expected["som_delta"], rtol=1e-12)
    # S4.3: what the hook captured is what it used.
    np.testing.assert_allclose(captured["bcl/grad_masked"].numpy(), layer.weight.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(captured["bcl/grad_raw"].numpy(), grad_output.numpy().T @ x.numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        captured["bcl/som_norm"].numpy(), np.linalg.norm(expected["som_delta"], axis=1), rtol=1e-10
    )


def test_captures_cover_the_feature_table_and_the_batch(captured):  # S4.3, S4.4
    layer = nn.Linear(F, D)
    BCL(layer, neighbors=K)
    layer(torch.rand(B, F)).sum().backward()
    norms = ("grad_norm_raw", "grad_norm_masked", "som_norm", "som_rate")
    vectors = {f"bcl/{name}" for name in (*module.FEATURE_VECTORS, *norms)}
    shapes = {key: tuple(value.shape) for key, value in captured.items()}
    assert {key for key, shape in shapes.items() if shape == (D,)} == vectors
    assert shapes["bcl/image_coverage"] == (B,)
    assert shapes["bcl/rank_score"] == (B, D)
    assert {key for key, shape in shapes.items() if shape == (D, F)} == {
        "bcl/grad_raw",
        "bcl/grad_masked",
        "bcl/som_targets",
    }


def test_a_layer_whose_input_wants_a_gradient_still_runs_backward(captured):
    model = nn.Sequential(nn.Linear(4, F), nn.ReLU(), nn.Linear(F, D), nn.ReLU(inplace=True), nn.Linear(D, 1))
    BCL(model[2], neighbors=K)
    model(torch.rand(B, 4)).mean().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_the_neighbour_table_is_recomputed_every_refresh_steps_only(captured):
    torch.manual_seed(1)
    layer = nn.Linear(F, D)
    bcl = BCL(layer, neighbors=1, refresh=3)
    tables = []
    for _ in range(7):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(D, F))
        fresh = nearest_rows(layer.weight.detach(), 1)
        layer(torch.rand(B, F)).sum().backward()
        tables.append(torch.equal(bcl.neighbors, fresh))
    assert tables == [True, False, False, True, False, False, True]


def test_state_dict_restores_the_hidden_state(captured):
    torch.manual_seed(2)
    layer = nn.Linear(F, D)
    bcl = BCL(layer, neighbors=K, refresh=50)
    inputs = torch.rand(3, B, F)
    layer(inputs[0]).sum().backward()
    saved, weight = bcl.state_dict(), layer.weight.detach().clone()
    with torch.no_grad():
        weight += 0.5 * torch.randn(D, F)
    layer.weight.data.copy_(weight)
    layer(inputs[1]).sum().backward()
    wanted = layer.weight.detach().clone()

    def again(state: dict | None) -> torch.Tensor:
        other = nn.Linear(F, D)
        other.load_state_dict({"weight": weight, "bias": layer.bias.detach()})
        hook = BCL(other, neighbors=K, refresh=50)
        if state is not None:
            hook.load_state_dict(state)
        other(inputs[1]).sum().backward()
        return other.weight.detach()

    assert torch.equal(again(saved), wanted)
    # Weights alone are not enough: the table of another step is another run.
    assert not torch.equal(again(None), wanted)


@pytest.mark.parametrize("still", ["eval", "no_grad", "removed"])
def test_nothing_happens_outside_training(captured, still):
    layer = nn.Linear(F, D)
    bcl = BCL(layer, neighbors=K)
    before = layer.weight.detach().clone()
    if still == "removed":
        bcl.remove()
    layer.train(still != "eval")
    with torch.set_grad_enabled(still != "no_grad"):
        output = layer(torch.rand(B, F))
    if output.requires_grad:
        output.sum().backward()
    assert torch.equal(layer.weight, before)
    assert bcl.step == 0
    assert not captured
