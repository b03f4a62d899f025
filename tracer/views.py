"""The views that users query, as SQL, and the small tables of facts that they stand on.

Over the base views `_steps`, `_features`, ... (all rows that were ever recorded) stand `steps`, `features`, ... without
what a later session superseded. They are the same in memory and in index.duckdb.
Room: tracer. Pure.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa

from tracer import tables

if TYPE_CHECKING:
    from tracer.chain import Chain

VIEWS = (
    "steps",
    "all_steps",
    "metrics",
    "features",
    "captures",
    "keyframes",
    "sessions",
    "epochs",
    "events",
    "branches",
)
BASE_COLUMNS = tuple(tables.SCHEMAS["steps"].names)
_SESSIONS = pa.schema(
    {
        "session": pa.int32(),
        "started": pa.float64(),
        "ended": pa.float64(),
        "first_step": pa.int64(),
        "status": pa.string(),
        "host": pa.string(),
        "pid": pa.int64(),
        "note": pa.string(),
        "cut": pa.int64(),
    }
)
_BRANCHES = pa.schema({"trace": pa.string(), "parent": pa.string(), "at_step": pa.int64(), "change": pa.string()})


_OF_THIS = (
    "LEFT JOIN _steps s ON s.step = v.step LEFT JOIN sessions_known k ON k.session = s.session "
    "WHERE coalesce(s.step < k.cut, true) AND (coalesce(k.session, 0) = 0 OR {} >= k.started)"
)


def view_statements(scalars: list[str], names: dict[str, str], *, cut: bool, judged: bool) -> list[str]:
    """The views that users see, over `_steps` and its like.

    `cut`: whether a session has been superseded, `judged`: whether there are verdicts. Where it is not so nothing is
    joined for it, which takes half the time of a question about a million steps.
    """
    return [
        # A step that a later session made anew has none of the verdicts, or late values, on the one it stands for.
        _verdicts_view(),
        _all_steps(cut=cut, judged=judged),
        "CREATE OR REPLACE VIEW steps AS SELECT * EXCLUDE (superseded) FROM all_steps WHERE NOT superseded",
        "CREATE OR REPLACE VIEW _hindsight AS SELECT v.step, v.name, arg_max(v.value, v.generation) AS value, v.source "
        f"FROM hindsight_known v {_OF_THIS.format('v.generation / 1e9')} AND v.value IS NOT NULL GROUP BY ALL",
        _metrics_view(scalars, names),
        *(_current(name, cut=cut) for name in ("features", "keyframes", "events")),
        _current("captures", "recorded_captures", cut=cut),
        "CREATE OR REPLACE VIEW captures AS SELECT *, 'recorded' AS source FROM recorded_captures UNION ALL BY NAME "
        f"SELECT v.* EXCLUDE (time), s.session FROM late_known v {_OF_THIS.format('v.time')} "
        "QUALIFY row_number() OVER (PARTITION BY v.step, v.key, v.source ORDER BY v.time DESC) = 1",
        _epochs_view(scalars),
        "CREATE OR REPLACE VIEW sessions AS SELECT k.session, k.started, k.ended, k.first_step, "
        "l.last_step, k.status, k.host, k.pid, k.note FROM sessions_known k LEFT JOIN "
        "(SELECT session, max(step) AS last_step FROM _steps GROUP BY session) l USING (session) ORDER BY k.session",
        "CREATE OR REPLACE VIEW branches AS SELECT * FROM branches_known",
    ]


def _verdicts_view() -> str:
    """The newest verdict on each step, of the session that the step is of; where no session is named its time says whose it is."""
    newest = ", ".join(
        f"arg_max({value}, v.generation) AS {name}"
        for name, value in (("verdict", "v.verdict"), ("time", "v.time"), ("torch", "coalesce(v.torch, '')"))
    )
    return (
        f"CREATE OR REPLACE VIEW _verdicts AS SELECT v.step, s.session, {newest} FROM verdicts_known v "
        "LEFT JOIN _steps s ON s.step = v.step LEFT JOIN sessions_known k ON k.session = s.session "
        "LEFT JOIN sessions_known j ON j.session = v.session "
        "WHERE coalesce(v.step < k.cut, true) AND coalesce(v.step < j.cut, true) AND CASE WHEN v.session IS NULL "
        "THEN coalesce(k.session, 0) = 0 OR v.time >= k.started ELSE coalesce(v.session = s.session, true) END "
        "GROUP BY v.step, s.session"
    )


def _all_steps(*, cut: bool, judged: bool) -> str:
    verdict, superseded, joined = "CAST(NULL AS VARCHAR)", "false", ""
    if cut:
        superseded = "coalesce(s.step >= k.cut, false)"
        joined += " LEFT JOIN sessions_known k USING (session)"
    if judged:
        verdict = "v.verdict"
        joined += " LEFT JOIN _verdicts v ON v.step = s.step AND v.session = s.session"
    return (
        f"CREATE OR REPLACE VIEW all_steps AS SELECT s.*, {verdict} AS verdict, {superseded} AS superseded "
        f"FROM _steps s{joined}"
    )


def _current(name: str, view: str | None = None, *, cut: bool) -> str:
    """A view without the rows that a later session superseded."""
    superseded = " LEFT JOIN sessions_known k USING (session) WHERE coalesce(t.step < k.cut, true)" if cut else ""
    return f"CREATE OR REPLACE VIEW {view or name} AS SELECT t.* FROM _{name} t{superseded}"


def _metrics_view(scalars: list[str], names: dict[str, str]) -> str:
    parts = [
        f"SELECT step, {quoted(names.get(c, c))} AS name, CAST({name(c)} AS DOUBLE) AS value, "
        f"{quoted('recorded' if c in tables.RECORDED else 'logged')} AS source FROM steps WHERE {name(c)} IS NOT NULL"
        for c in (*tables.RECORDED, *scalars)
    ]
    parts.append("SELECT step, name, value, source FROM _hindsight")
    return f"CREATE OR REPLACE VIEW metrics AS {' UNION ALL '.join(parts)}"


def _epochs_view(scalars: list[str]) -> str:
    """Both means of an epoch: that of the batch means, and that of the samples, for which a short batch weighs less."""
    means = []
    for column in ("loss", *scalars):
        value = f"s.{name(column)}"
        weighted = f"sum({value} * s.batch_size) FILTER (WHERE {value} IS NOT NULL)"
        weight = f"sum(s.batch_size) FILTER (WHERE {value} IS NOT NULL)"
        means.append(f"avg({value}) AS {name(column + '_batch_mean')}")
        means.append(f"{weighted} / {weight} AS {name(column + '_sample_mean')}")
    return (
        f"CREATE OR REPLACE VIEW epochs AS SELECT e.*, m.* EXCLUDE (session, first_step) FROM _epochs e "
        f"LEFT JOIN (SELECT e.session, e.first_step, {', '.join(means)} FROM steps s JOIN _epochs e "
        "ON s.session = e.session AND s.epoch IS NOT DISTINCT FROM e.epoch "
        "AND s.step BETWEEN e.first_step AND e.last_step GROUP BY ALL) m "
        "ON m.session = e.session AND m.first_step = e.first_step "
        "LEFT JOIN sessions_known k ON k.session = e.session "
        "WHERE coalesce(e.first_step < k.cut, true) ORDER BY e.session, e.first_step"
    )


def session_table(chain: Chain) -> pa.Table:
    """The sessions, and the step from which on each is superseded (`cut`)."""
    cuts = chain.cuts
    known = chain.manifest.sessions
    rows = [
        (s.session, s.started, s.ended, s.first_step, s.status, s.host, s.pid, s.note, cuts.get(s.session))
        for s in known
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_SESSIONS)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, _SESSIONS, strict=True)], schema=_SESSIONS)


def branch_table(chain: Chain) -> pa.Table:
    """Where this trace branched off, if it did."""
    parent = chain.manifest.parent
    row = [] if parent is None else [(str(chain.path), parent.trace, parent.at_step, json.dumps(parent.change))]
    columns = list(zip(*row, strict=True)) if row else [()] * len(_BRANCHES)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, _BRANCHES, strict=True)], schema=_BRANCHES)


def quoted(text: str) -> str:
    """`text` as a literal."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """`column` as an identifier."""
    return '"' + column.replace('"', '""') + '"'
