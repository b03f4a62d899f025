"""All audits under one name: pure functions from arrays to findings, silent on healthy runs (S1.4).

Room: analysis. The functions live in `audits_series` (recorded numbers), `audits_learning` (gradients, features,
parameters) and `audits_data` (batches, modes); a reader of traces calls them from here.
"""

from __future__ import annotations

from analysis.audits_data import (
    eval_while_training,
    repeated_batches,
    repeated_samples,
    same_order,
    sorted_labels,
    train_while_evaluating,
)
from analysis.audits_learning import (
    dead_features,
    exploding_gradient,
    features_converging,
    forces_fighting,
    frozen_parameters,
    nothing_moves,
    update_ratio,
    vanishing_gradient,
    vanishing_layers,
    zero_learning_rate,
)
from analysis.audits_series import (
    all_zero,
    clock_backwards,
    constant,
    duplicates,
    gaps,
    means_disagree,
    nonfinite,
    nonfinite_tensors,
    series_disagree,
    zero_beside_falling_loss,
)
from analysis.finding import Finding

__all__ = [
    "Finding",
    "all_zero",
    "clock_backwards",
    "constant",
    "dead_features",
    "duplicates",
    "eval_while_training",
    "exploding_gradient",
    "features_converging",
    "forces_fighting",
    "frozen_parameters",
    "gaps",
    "means_disagree",
    "nonfinite",
    "nonfinite_tensors",
    "nothing_moves",
    "repeated_batches",
    "repeated_samples",
    "same_order",
    "series_disagree",
    "sorted_labels",
    "train_while_evaluating",
    "update_ratio",
    "vanishing_gradient",
    "vanishing_layers",
    "zero_beside_falling_loss",
    "zero_learning_rate",
]
