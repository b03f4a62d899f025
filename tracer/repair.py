"""Bringing a trace in order, and finding what is beyond it: `rewind repair`.

Room: tracer. May touch: the trace it is given, through the sealer; nothing that was committed is changed.
"""

from __future__ import annotations

from pathlib import Path

from tracer import addenda, index
from tracer.chain import Chain
from tracer.damage import damages, index_damage
from tracer.sealer import seal


def repair(path: str | Path) -> list[str]:
    """Seal what a killed run left, say how its sessions ended, build the index anew where it is stale; check all sums.

    What was found out later and is gone is named this once, and then not looked for any more. Return what was done and what is
    damaged, a line each; nothing where all is well. Raise UsageError while the trace is
    being recorded, NotATraceError, FormatVersionError, WriteError, DamageError where a commit itself is damaged.
    """
    path = Path(path)
    done = seal(path)
    if any(index_damage(path)):
        index.build(Chain(path))
        done.append("index.duckdb was damaged, and is built anew")
    lost = addenda.forget_missing(path)
    return [*done, *lost, *damages(path)]
