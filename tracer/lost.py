"""Which steps of a trace are missing: they were made, and their records could not be written. # S0.4

Room: tracer. May touch: reads the trace it is given.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracer.trace import Trace


def lost_steps(trace: Trace) -> list[tuple[int, int]]:
    """Return the runs (first, last) of missing steps, ascending; a session that begins later on purpose leaves none."""
    runs = trace.recorded_steps.runs
    starts = {session.first_step for session in trace.sessions}
    gaps = [(a[1] + 1, b[0] - 1) for a, b in itertools.pairwise(runs)]
    if starts and runs and runs[0][0] > min(starts):
        gaps.insert(0, (min(starts), runs[0][0] - 1))
    return [(first, end) for first, end in gaps if end + 1 not in starts]


def worded(runs: Iterable[Sequence[int]]) -> str:
    """Return runs of steps as people write them.

    >>> worded([(3, 3), (7, 19)])
    '3, 7-19'
    """
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
