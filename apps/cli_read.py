"""Verbs that read a trace: ls, info, sql.

Room: apps. May touch: what `apps.cli` may, and the file given with --out.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apps.terminal import as_json, jsonable, print_facts, print_json, print_table, size, table_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from duckdb import DuckDBPyRelation

    from tracer.trace import Trace

_trace = click.argument("trace", type=click.Path(path_type=Path))


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), default=".")
@as_json
def ls(directory: Path, *, as_json: bool) -> None:
    """List the traces under DIRECTORY, newest first, branches below the trace that they come from."""
    from tracer.listing import as_tree
    from tracer.listing import ls as list_traces

    found = list_traces(directory)
    if as_json:
        print_json(found)
        return
    columns = ["trace", "created", "steps", "status", "detail", "size", "script"]
    print_table(columns, (_ls_row(depth, facts) for depth, facts in as_tree(found)))


def _ls_row(depth: int, facts: dict[str, Any]) -> list[Any]:
    """One line; a branch says where it begins and what was changed there, in the place of its script."""
    if facts["error"]:
        return [facts["path"], None, None, "broken", None, size(facts["bytes"]), facts["error"]]
    when = datetime.fromtimestamp(facts["created"]).strftime("%Y-%m-%d %H:%M")
    name, told = "   " * (depth - 1) + "└─ " * (depth > 0) + facts["path"], facts["script"]
    if facts["at_step"] is not None:
        change = ", ".join(f"{key}={value}" for key, value in facts["change"].items()) or "no change"
        told = f"branch at {facts['at_step']}: {change}" + ("" if depth else f", of {facts['parent']}")
    return [name, when, facts["steps"], facts["status"], facts["detail"], size(facts["bytes"]), told]


@click.command()
@_trace
@as_json
def info(trace: Path, *, as_json: bool) -> None:
    """Say what TRACE holds: steps, sessions, keyframes, size, whether it can be replayed, and whether it was verified."""
    from tracer import open_trace
    from tracer.errors import TraceError
    from tracer.proof import proof

    with open_trace(trace) as opened:
        facts = opened.info()
        facts["variables"] = _variables(opened, as_json=as_json)
        try:
            known = proof(opened)
            facts["verdicts"] = known.as_dict() if as_json else known.words
        except TraceError as error:  # The rest of what is known of a damaged trace is worth having.
            facts["verdicts"] = {"words": str(error)} if as_json else str(error)
        print_facts(facts, as_json=as_json)


def _variables(opened: Trace, *, as_json: bool) -> Any:
    from tracer import beside

    last = max(opened.manifest.sessions, key=lambda s: s.session, default=None)
    lost = beside.variables_lost(opened.path, last) if last is not None else None
    if lost is not None:
        return {"damage": lost} if as_json else lost
    return asdict(opened.variables) if as_json else opened.variables.told()


@click.command()
@_trace
@click.argument("query")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)
@click.option("--json", "form", flag_value="json", help="The same as --format json.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write to this file, which must not exist, instead of stdout."
)
def sql(trace: Path, query: str, *, form: str, out: Path | None) -> None:
    """Ask TRACE a question in SQL (DuckDB's).

    Views: steps, metrics, features, captures, keyframes, sessions, epochs, events, branches.

    JSON has no NaN: NaN and the infinities are written as the strings "NaN", "Infinity" and "-Infinity". In CSV they
    are nan, inf and -inf, and NULL is empty. Parquet keeps them as they are.
    """
    from tracer import open_trace
    from tracer.errors import UsageError

    if out is not None and out.exists():
        raise UsageError(f"{out} exists; nothing was overwritten: choose another --out", path=out)
    with open_trace(trace) as opened, _one_line_errors(trace):
        relation = opened.sql(query)
        if relation is None:
            raise UsageError("the statement gives no rows: ask with select")
        _write(_FORMATS[form], relation, out)


@contextmanager
def _one_line_errors(trace: Path) -> Iterator[None]:
    """DuckDB runs a relation when it is read: what it says then is the query's fault, as when it is parsed."""
    import duckdb

    from tracer.index import worded

    try:
        yield
    except duckdb.Error as error:
        raise worded(error, trace) from None


def _write(form: Callable[[DuckDBPyRelation, BinaryIO], None], relation: DuckDBPyRelation, out: Path | None) -> None:
    if out is None:
        form(relation, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    # Written beside and put in place last: a failed query leaves no half file behind.
    part = out.with_name(out.name + ".part")
    try:
        with open(part, "xb") as file:
            form(relation, file)
        os.link(part, out)
    finally:
        part.unlink(missing_ok=True)


def _table(relation: DuckDBPyRelation, out: BinaryIO) -> None:
    for line in table_lines(relation.columns, relation.iter_rows()):
        out.write(line.encode() + b"\n")


def _csv(relation: DuckDBPyRelation, out: BinaryIO) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(relation.columns)
    for row in relation.iter_rows():
        writer.writerow(["" if value is None else value for value in row])
    text.detach()


def _json(relation: DuckDBPyRelation, out: BinaryIO) -> None:
    names = _distinct(relation.columns)
    start = b"[\n "
    for row in relation.iter_rows():
        out.write(start + json.dumps(dict(zip(names, map(jsonable, row), strict=True)), ensure_ascii=False).encode())
        start = b",\n "
    out.write(b"[]\n" if start == b"[\n " else b"\n]\n")


def _distinct(names: list[str]) -> list[str]:
    """Number the names that come again, since an object has each key once."""
    found: dict[str, None] = {}
    for name in names:
        fresh = next(new for new in (name, *(f"{name}_{i}" for i in range(1, len(names) + 1))) if new not in found)
        found[fresh] = None
    return list(found)


def _parquet(relation: DuckDBPyRelation, out: BinaryIO) -> None:
    from pyarrow.parquet import ParquetWriter

    # Not by DuckDB's own hand: a trace's connection may not write files.
    batches = relation.to_arrow_reader()
    with ParquetWriter(out, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


_FORMATS: dict[str, Callable[[DuckDBPyRelation, BinaryIO], None]] = {
    "table": _table,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}

VERBS = (ls, info, sql)
