"""BCL (bidirectional competitive learning) as a hook on one linear layer, for the demo (room: apps).

Winners of an image learn by gradient, losers are pulled towards inputs as in a self-organising map. The table of
quantities is one pure function per row or group of rows (tensors in, tensors out); `BCL` is the thin hook around them.
It may touch the hooked layer's weight and `tracer.capture`, nothing else of Rewind.

Shapes: B samples, D features (output units), F inputs, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

import tracer

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS: Final = 1e-8
NEIGHBORS: Final = 8
REFRESH: Final = 50
TEMPERATURE: Final = 5.0
SOM_LR: Final = {"slow": 0.001, "medium": 0.005}

FEATURE_VECTORS: Final = (
    "win_rate",
    "grad_magnitude",
    "som_magnitude",
    "feature_novelty",
    "effective_win",
    "gradient_weight",
    "contender_weight",
    "attraction_weight",
)


@dataclass(frozen=True)
class Scores:
    """Who wins what: the gradient's side of the competition."""

    rank_score: Tensor  # [B, D]
    win_rate: Tensor  # [D]
    image_coverage: Tensor  # [B]
    feature_novelty: Tensor  # [D]
    effective_win: Tensor  # [D]
    gradient_weight: Tensor  # [D]
    contender_weight: Tensor  # [D]
    attraction_weight: Tensor  # [D]
    grad_mask: Tensor  # [B, D]
    grad_magnitude: Tensor  # [D]


@dataclass(frozen=True)
class Pull:
    """Where losers are pulled: the SOM's side of the competition."""

    som_targets: Tensor  # [D, F]
    som_rate: Tensor  # [D]: som_lr, decoupled times (1 - feature_novelty)
    som_delta: Tensor  # [D, F]
    som_magnitude: Tensor  # [D]


def output_strength(output: Tensor) -> Tensor:
    """`abs(A)` as [B, D]; a conv output [B, D, ...space] is averaged over space after `abs`."""
    strength = output.abs()
    return strength.flatten(2).mean(2) if strength.dim() > 2 else strength


def nearest_rows(weight: Tensor, k: int = NEIGHBORS) -> Tensor:
    """The k rows of `weight` [D, F] with the highest cosine to each row, itself excluded: indices [D, min(k, D-1)]."""
    unit = weight / weight.norm(dim=1, keepdim=True).clamp_min(EPS)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-torch.inf)
    return cosine.topk(min(k, len(weight) - 1), dim=1).indices


def rank_scores(strength: Tensor, neighbors: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """`sigmoid(T * (strength - max over neighbours of strength))`, [B, D]."""
    return torch.sigmoid(temperature * (strength - strength[:, neighbors].amax(dim=2)))


def novelty_of_features(rank_score: Tensor, image_coverage: Tensor) -> Tensor:
    """Mean of `1 / image_coverage` over images, weighted by `rank_score`: [D]; 0 for a feature that scores nowhere."""
    wins = rank_score.sum(dim=0)
    shared = (rank_score / image_coverage[:, None]).sum(dim=0)
    return torch.where(wins > 0, shared / wins, torch.zeros_like(wins))


def score(strength: Tensor, neighbors: Tensor, *, coupled: bool, temperature: float = TEMPERATURE) -> Scores:
    """Everything that follows from `strength` [B, D] and the neighbour table [D, k]."""
    rank_score = rank_scores(strength, neighbors, temperature)
    win_rate = rank_score.mean(dim=0)
    image_coverage = rank_score.sum(dim=1)
    feature_novelty = novelty_of_features(rank_score, image_coverage)
    effective_win = win_rate * feature_novelty
    grad_mask = rank_score * feature_novelty * effective_win if coupled else rank_score
    return Scores(
        rank_score=rank_score,
        win_rate=win_rate,
        image_coverage=image_coverage,
        feature_novelty=feature_novelty,
        effective_win=effective_win,
        gradient_weight=effective_win,
        contender_weight=4 * win_rate * (1 - win_rate),
        attraction_weight=1 - effective_win,
        grad_mask=grad_mask,
        grad_magnitude=grad_mask.sum(dim=0),
    )


def neighborhood_of_best(rank_score: Tensor, neighbors: Tensor) -> Tensor:
    """`in_nbr` [B, D]: 1 where a feature is a neighbour of the image's strongest rank score (the first, if tied)."""
    best = rank_score.argmax(dim=1)
    return torch.zeros_like(rank_score).scatter_(1, neighbors[best], 1.0)


def weighted_average(weights: Tensor, inputs: Tensor, otherwise: Tensor) -> Tensor:
    """Average of `inputs` [B, F] per column of `weights` [B, D]: [D, F]; `otherwise`'s row where they sum to zero."""
    total = weights.sum(dim=0)[:, None]
    return torch.where(total > 0, weights.T @ inputs / total, otherwise)


def local_targets(inputs: Tensor, weight: Tensor, neighbors: Tensor, scores: Scores, in_nbr: Tensor) -> Tensor:
    """Average of the images that a feature nearly won, those least claimed by its neighbours counting most: [D, F]."""
    local_coverage = scores.rank_score[:, neighbors].sum(dim=2)
    local_novelty = 1 / (local_coverage + 1)
    return weighted_average((1 - scores.rank_score) * in_nbr * local_novelty, inputs, weight)


def global_targets(inputs: Tensor, weight: Tensor, scores: Scores) -> Tensor:
    """Average of the images that a feature lost, those that few features cover counting most: [D, F]."""
    return weighted_average((1 - scores.rank_score) / (scores.image_coverage[:, None] + EPS), inputs, weight)


def pull(inputs: Tensor, weight: Tensor, neighbors: Tensor, scores: Scores, *, coupled: bool, som_lr: float) -> Pull:
    """The SOM's targets [D, F] and the step towards them, from inputs [B, F] and the weight [D, F] before the step."""
    in_nbr = neighborhood_of_best(scores.rank_score, neighbors)
    contender, attraction = scores.contender_weight[:, None], scores.attraction_weight[:, None]
    local = local_targets(inputs, weight, neighbors, scores, in_nbr)
    som_targets = contender * local + attraction * global_targets(inputs, weight, scores)
    som_targets = som_targets / (contender + attraction + EPS)
    som_rate = som_lr * (torch.ones_like(scores.win_rate) if coupled else 1 - scores.feature_novelty)
    som_weight = (1 - scores.rank_score) * (scores.attraction_weight + in_nbr * scores.contender_weight)
    return Pull(
        som_targets=som_targets,
        som_rate=som_rate,
        som_delta=som_rate[:, None] * (som_targets - weight),
        som_magnitude=som_weight.sum(dim=0),
    )


class BCL:
    """Hooks `layer` so that each backward pass in training mode applies one BCL step to its weight.

    `coupled`, `som_lr`, `temperature` and `refresh` are plain attributes and may be changed between steps. The step
    counter and the neighbour table (hidden state: recomputed only every `refresh` steps) are in `state_dict()`.
    """

    def __init__(
        self,
        layer: nn.Linear,
        *,
        coupled: bool = True,
        som_lr: float = SOM_LR["medium"],
        neighbors: int = NEIGHBORS,
        refresh: int = REFRESH,
        temperature: float = TEMPERATURE,
    ) -> None:
        self.layer = layer
        self.coupled = coupled
        self.som_lr = som_lr
        self.refresh = refresh
        self.temperature = temperature
        self.step = 0
        self.k = neighbors
        self.neighbors = nearest_rows(layer.weight.detach(), neighbors)
        self._handle = layer.register_forward_hook(self._after_forward)

    def state_dict(self) -> dict[str, Any]:
        """`{"step": int, "neighbors": int64 [D, k]}`; the table is replaced, never changed in place."""
        return {"step": self.step, "neighbors": self.neighbors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take step counter and neighbour table from `state_dict()`'s form."""
        self.step = int(state["step"])
        self.neighbors = state["neighbors"].to(self.layer.weight.device, torch.int64, copy=True)

    def remove(self) -> None:
        """Take the hook off the layer."""
        self._handle.remove()

    def _after_forward(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not (layer.training and output.requires_grad):
            return
        dtype = self.layer.weight.dtype
        inputs = args[0].detach().to(dtype)
        # Taken now and not in backward: a nonlinearity that follows may work in place on the output.
        strength = output_strength(output.detach()).to(dtype)
        output.register_hook(lambda grad: self._in_backward(inputs, strength, grad))

    @torch.no_grad()
    def _in_backward(self, inputs: Tensor, strength: Tensor, grad: Tensor) -> Tensor:
        weight = self.layer.weight.detach()
        if self.step % self.refresh == 0:
            self.neighbors = nearest_rows(weight, self.k)
        self.step += 1
        scores = score(strength, self.neighbors, coupled=self.coupled, temperature=self.temperature)
        som = pull(inputs, weight, self.neighbors, scores, coupled=self.coupled, som_lr=self.som_lr)
        masked = grad * scores.grad_mask.to(grad.dtype)
        self._capture(scores, som, grad.to(weight.dtype).T @ inputs, masked.to(weight.dtype).T @ inputs)
        # BCL moves the weight before the layer's own backward has run. An ordinary in-place add would raise the
        # version counter, and autograd would refuse the saved weight wherever the layer's input wants a gradient.
        # `.data` has a counter of its own: the move is deliberate, and such an input's gradient sees the moved weight.
        # The weight's own gradient is grad^T X and does not depend on it.
        self.layer.weight.data.add_(som.som_delta)
        return masked

    def _capture(self, scores: Scores, som: Pull, grad_raw: Tensor, grad_masked: Tensor) -> None:
        """S4.3: BCL is a user of `tracer.capture`. `som_delta` is `som_rate * (som_targets - W)`: not kept."""
        for name in FEATURE_VECTORS:
            owner = som if name == "som_magnitude" else scores
            tracer.capture(f"bcl/{name}", getattr(owner, name))
        tracer.capture("bcl/grad_norm_raw", grad_raw.norm(dim=1))
        tracer.capture("bcl/grad_norm_masked", grad_masked.norm(dim=1))
        tracer.capture("bcl/som_norm", som.som_delta.norm(dim=1))
        tracer.capture("bcl/image_coverage", scores.image_coverage, dims=("sample",))
        tracer.capture("bcl/rank_score", scores.rank_score, dims=("sample", "feature"))
        tracer.capture("bcl/som_targets", som.som_targets, dims=("feature", "input"))
        tracer.capture("bcl/grad_raw", grad_raw, dims=("feature", "input"))
        tracer.capture("bcl/grad_masked", grad_masked, dims=("feature", "input"))
        tracer.capture("bcl/som_rate", som.som_rate)
