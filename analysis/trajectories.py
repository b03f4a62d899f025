"""Features over time: how far from where they began, when a condition began to last, who moves with whom.

Room: analysis. Arrays in, arrays out. Shapes: T steps, D features, F inputs; `steps` [T] are increasing step numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.similarity import cosine_matrix, unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

DEAD_BELOW = 0.01
WINNER_ABOVE = 0.05


def cosine_to_initial(weights: Iterable[ArrayLike], initial: ArrayLike | None = None) -> NDArray[np.float64]:
    """Cosine of each feature's weight with its initial one: weights [T, D, F] (or an iterator of [D, F]) to [T, D].

    `initial` [D, F] defaults to the first of them. An iterator is consumed one step at a time.
    """
    reference = None if initial is None else unit_rows(initial)
    rows: list[NDArray[np.float64]] = []
    for weight in weights:
        units = unit_rows(weight)
        reference = units if reference is None else reference
        rows.append(np.clip((units * reference).sum(axis=1), -1.0, 1.0))
    return np.stack(rows) if rows else np.empty((0, 0 if reference is None else len(reference)))


def first_lasting(condition: ArrayLike, steps: ArrayLike | None = None, *, at_least: int = 1) -> int | None:
    """The first step from which `condition` [T] holds for all the rest; None where it does not hold to the end.

    `at_least` is how many of the last values must hold for that to count. `steps` default to 0..T-1.
    """
    held = np.asarray(condition, dtype=bool)
    broken = np.flatnonzero(~held)
    start = int(broken[-1]) + 1 if broken.size else 0
    if held.size - start < max(at_least, 1):
        return None
    return start if steps is None else int(np.asarray(steps)[start])


def died_at(
    win_rate: ArrayLike, steps: ArrayLike | None = None, *, below: float = DEAD_BELOW, at_least: int = 1
) -> list[int | None]:
    """Per feature the first step from which its win rate [T, D] stays under `below` (S4.9); None for the living.

    NaN is not under anything: a feature with NaN at the end did not die, it is unknown.
    """
    rates = np.asarray(win_rate, dtype=np.float64)
    return [first_lasting(column < below, steps, at_least=at_least) for column in rates.T]


def status(win_rate: ArrayLike) -> list[str]:
    """`dead` (under 0.01), `winner` (over 0.05) or `contender`, per value of win_rate [D]; `unknown` for NaN (S4.4)."""
    return [_status(rate) for rate in np.asarray(win_rate, dtype=np.float64)]


def alive(win_rate: ArrayLike) -> int:
    """How many features of win_rate [D] are not dead: at or over 0.01."""
    return int((np.asarray(win_rate, dtype=np.float64) >= DEAD_BELOW).sum())


def pairwise(weight: ArrayLike, watched: Sequence[int]) -> NDArray[np.float64]:
    """Cosines between the watched features' rows of one weight [D, F]: [W, W] (S4.7)."""
    return cosine_matrix(np.asarray(weight, dtype=np.float64)[list(watched)])


def pairwise_over_steps(weights: Iterable[ArrayLike], watched: Sequence[int]) -> NDArray[np.float64]:
    """`pairwise` for each weight of [T, D, F] or an iterator of [D, F]: [T, W, W]."""
    matrices = [pairwise(weight, watched) for weight in weights]
    return np.stack(matrices) if matrices else np.empty((0, len(watched), len(watched)))


def _status(rate: float) -> str:
    if np.isnan(rate):
        return "unknown"
    if rate < DEAD_BELOW:
        return "dead"
    return "winner" if rate > WINNER_ABOVE else "contender"
