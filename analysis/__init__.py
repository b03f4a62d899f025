"""UNDERSTAND: what the recorded arrays say. Arrays in, arrays out: this room knows neither replay nor the app.

`analysis.similarity` (how alike rows are), `forces` (two updates on one weight), `trajectories` (features over time),
`metrics` (means, accuracy, calibration, series for charts), `questions` (SQL presets), `audits` (findings of a doctor's
visit). The names below are those wanted most often.
"""

from __future__ import annotations

from analysis.finding import Finding
from analysis.forces import force_ratio, row_cosines
from analysis.metrics import downsample
from analysis.similarity import cosine_matrix, linear_cka, off_diagonal_mean, off_diagonal_stats, pearson_matrix
from analysis.trajectories import died_at

__all__ = [
    "Finding",
    "cosine_matrix",
    "died_at",
    "downsample",
    "force_ratio",
    "linear_cka",
    "off_diagonal_mean",
    "off_diagonal_stats",
    "pearson_matrix",
    "row_cosines",
]
