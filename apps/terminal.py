"""How facts look on a terminal: a table, a list of facts, or JSON; and a progress line while the user waits.

JSON has no NaN: NaN and the infinities are written as the strings "NaN", "Infinity" and "-Infinity", bytes as hex,
times as ISO 8601.
Room: apps. May touch: stdout and stderr.
"""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def jsonable(value: Any) -> Any:
    """Return `value` as what JSON can hold, losing nothing that it can say; see the module's docstring."""
    if isinstance(value, float):
        return value if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return _foreign(value)


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return str(value)


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    click.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=False))


def print_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print named facts, one a line, or as one JSON object."""
    if as_json:
        print_json(dict(facts))
        return
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {_plain(value)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under their column names."""
    for line in table_lines(columns, rows):
        click.echo(line)


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield rows under their column names, a line each; columns as wide as their longest cell, numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    for row in [list(columns), ["-" * width for width in widths], *cells]:
        parts = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(row, widths, right, strict=True))
        yield "  ".join(parts).rstrip()


def cell(value: Any) -> str:
    """Return one value as the text of a table's cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"
    return _plain(value).replace("\n", "\\n")


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "-"
    if isinstance(value, dict | list | tuple):
        return json.dumps(jsonable(value), ensure_ascii=False)
    return str(jsonable(value))


def size(nbytes: float) -> str:
    """`1536` -> `1.5 KB`; in steps of 1024."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TB"


def counter(label: str) -> Callable[[int, int], None] | None:
    """Return a function (done, total) that keeps one line on stderr up to date, or None where nobody is looking."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        click.echo(f"\r{label} {done}/{total}", err=True, nl=done >= total)

    return show


def verdict_line(verdict: Any) -> str:
    """Return a verdict in words: `step 7: diverged: encoder.weight differs by 1 ULP; cause: another thread count`."""
    said = [f"step {verdict.step}: {verdict.kind}", verdict.detail]
    if verdict.cause and verdict.cause != verdict.detail:
        said.append(f"likely cause: {verdict.cause}")
    return ", ".join(word for word in said if word)


def report_lines(report: Any) -> list[str]:
    """Return what a verification found, in words: the count, and the first step of each kind that is not verified."""
    facts = report.as_dict()
    lines = [f"{facts['verified']} of {facts['steps']} steps verified bit for bit"]
    for kind in ("diverged", "unverifiable"):
        if facts[kind]:
            lines[0] += f", {facts[kind]} {kind}"
            lines.append("first: " + verdict_line(next(v for v in report.verdicts if v.kind == kind)))
    return [*lines, *report.notes]
