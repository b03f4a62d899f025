"""What an audit found: a fact with its evidence, the query that shows it, and what to do.

Room: analysis. Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One finding of a doctor's visit.

    `kind` is a word to filter by (`nan`, `dead_features` ...), `step` where it begins (None: the run as a whole),
    `evidence` one sentence with figures, `query` SQL over the trace's views that shows it, `advice` what to do.
    """

    kind: str
    step: int | None
    evidence: str
    query: str
    advice: str


def quoted(text: str) -> str:
    """`text` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def metric_query(name: str, where: str = "") -> str:
    """The SQL that lists a metric's values; `where` is a further condition on `step` or `value`."""
    also = f" and {where}" if where else ""
    return f"select step, value from metrics where name = {quoted(name)}{also} order by step"
