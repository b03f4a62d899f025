"""What is found out about a trace after it was recorded: hindsight metrics and verdicts, joined to it by SQL.

Each result is a Parquet file of a name never used before, `hindsight/<name>-<hash>.parquet` and
`verdicts/<number>-<process>.parquet`, that appears whole by one rename; of several verdicts of a step the newest counts.
trace.json lists it as soon as it is there: what was taken away is named. A file that is not listed (an older trace's, or
of a process that was killed just then) counts all the same.
Room: tracer. May touch: hindsight/, verdicts/ and trace.json of the trace it is given.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import xxhash

from tracer import manifest, tables
from tracer.errors import DamageError
from tracer.parquet import ParquetFile
from tracer.segments import proven, with_sum, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

_log = logging.getLogger("rewind")
DIRECTORIES = ("hindsight", "verdicts")
VERDICTS = pa.schema(
    {
        "step": pa.int64(),
        "verdict": pa.string(),
        "generation": pa.int64(),
        "time": pa.float64(),
        "session": pa.int32(),
        "torch": pa.string(),
        "way": pa.string(),
    }
)
"""See `tracer.proof`; of files without the last four the time is that of the file, the rest not known."""
_HINDSIGHT = pa.schema(
    {
        "step": pa.int64(),
        "name": pa.string(),
        "value": pa.float64(),
        "source": pa.string(),
        "generation": pa.int64(),
    }
)

ARRAYS = pa.schema(
    {
        "step": pa.int64(),
        "key": pa.string(),
        "dtype": pa.string(),
        "shape": pa.list_(pa.int64()),
        "bytes": pa.int64(),
        "source": pa.string(),
        "time": pa.float64(),
    }
)
"""The arrays that hindsight functions gave, a row for each step: see `late.table`."""


def arrays_changed(trace: Path) -> int | None:
    """What is another number when a hindsight function's arrays came to the trace at `trace`; None while there are none."""
    try:
        return (trace / "hindsight").stat().st_mtime_ns
    except OSError:
        return None


def write_hindsight(
    path: Path,
    name: str,
    digest: str,
    rows: Iterable[tuple[int, str, float]],
    facts: Mapping[str, Any] | None = None,
    *,
    arrays: Callable[[Path], None] | None = None,
) -> Path:
    """Add the metric `name`, computed by code with hash `digest`: rows are (step, column name, value).

    `facts` (its source code, say) is kept beside it as JSON; `arrays` writes a Zarr group where it is told. Return the file;
    `metrics.source` is `hindsight:<digest>`.
    """
    rows = list(rows)
    table = pa.table(
        {
            "step": pa.array([r[0] for r in rows], pa.int64()),
            "name": pa.array([r[1] for r in rows], pa.string()),
            "value": pa.array([r[2] for r in rows], pa.float64()),
            "source": pa.array([f"hindsight:{digest}"] * len(rows), pa.string()),
            "generation": pa.array([time.time_ns()] * len(rows), pa.int64()),
        }
    )
    stem = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name) or '_'}-{digest}"
    target = path / "hindsight" / f"{stem}.parquet"
    place = 1
    while target.exists():
        place += 1
        target = path / "hindsight" / f"{stem}.{place}.parquet"
    known = {"name": name, "hash": digest, "rows": len(rows), "time": time.time(), **(facts or {})}
    if arrays is not None:
        arrays(target.with_suffix(".zarr"))
        known["files"] = _sums(target.with_suffix(".zarr"))
    _write(target, table, known)
    return target


def _write(target: Path, table: pa.Table, facts: dict[str, Any], instead_of: Iterable[Path] = ()) -> None:
    """Put the facts beside, with the sum of the table, the table in its place after them, and last list it."""
    data = tables.parquet(table)
    write_atomically(target.with_suffix(".json"), with_sum({**facts, "xxh3": xxhash.xxh3_64_hexdigest(data)}))
    write_atomically(target, data)
    _list(target.parents[1], {_name(target)}, {_name(file) for file in instead_of})


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _list(trace: Path, fresh: set[str], gone: set[str]) -> None:
    manifest.amend(trace, lambda facts: replace(facts, addenda=tuple(sorted({*facts.addenda, *fresh} - gone))))


def write_verdicts(path: Path, rows: Sequence[tuple[int, str]]) -> Path:
    """Add verdicts of steps of which only (step, kind) is known. Return the file."""
    known = {"step": pa.array([r[0] for r in rows], pa.int64()), "verdict": pa.array([r[1] for r in rows], pa.string())}
    return add_verdicts(path, pa.table(known))


def add_verdicts(path: Path, fresh: pa.Table, earlier: pa.Table | None = None, instead_of: Iterable[Path] = ()) -> Path:
    """Add verdicts: `fresh` without their generation, which is a new one; rows of `earlier` files as they are. Return the file.

    The files that it is written `instead_of` may then be taken away.
    """
    own = (f for f in files(path) if f.parent.name == "verdicts")
    number = 1 + max((int(n) for f in own if (n := f.stem.partition("-")[0]).isdigit()), default=0)
    table = fresh.append_column("generation", pa.array([number] * len(fresh), pa.int64()))
    if earlier is not None:
        table = pa.concat_tables([earlier, table], promote_options="default")
    # Two processes may have counted alike.
    target = path / "verdicts" / f"{number:06d}-{os.getpid()}.parquet"
    _write(target, table, {"rows": len(table), "time": time.time()}, instead_of)
    return target


def missing(path: Path) -> list[str]:
    """What trace.json lists of later findings and is not there, a line each: which file, and what is lost with it."""
    return [line for name in _gone(path) for line in _losses(path / name)]


def _gone(path: Path) -> list[str]:
    gone = [name for name in manifest.read(path).addenda if not _is_whole(path / name)]
    # What was taken together into one file is not listed any more, and then goes.
    still = set(manifest.read(path).addenda) if gone else set()
    return [name for name in gone if name in still]


def _is_whole(file: Path) -> bool:
    return not file.name.endswith(".parquet") or (file.exists() and file.with_suffix(".json").exists())


def _losses(file: Path) -> Iterable[str]:
    facts = _facts(file)
    if file.parent.name == "verdicts":
        lost = "its verdicts are lost: verify the steps again"
    else:
        called = facts.get("name") or file.stem.rpartition("-")[0]
        lost = f"the hindsight metric {called!r} is lost: ask the function again, or `rewind repair` forgets it"
    for part in (file, file.with_suffix(".json")):
        if not part.exists():
            yield f"{part} is missing: {lost}"


def forget_missing(path: Path) -> list[str]:
    """List what is gone no more; return a line for each of these files."""
    gone = _gone(path)
    found = [line for name in gone for line in _losses(path / name)]
    if gone:
        _list(path, set(), set(gone))
    return found


def _sums(folder: Path) -> dict[str, str]:
    """{name: xxh3_64} of every file in `folder`."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): xxhash.xxh3_64_hexdigest(file.read_bytes()) for file in found}


def array_damages(file: Path) -> list[str]:
    """What of the arrays beside an annotation file is not as it was written, a line each."""
    return file_damages(file.with_suffix(".zarr"), _facts(file).get("files"))


def file_damages(folder: Path, told: Mapping[str, str] | None, inside: str = "") -> list[str]:
    """What in `folder`/`inside` is not as `told`: {name: sum} of all files of the folder; nothing where nothing was told."""
    if not isinstance(told, dict):
        return []
    found = _sums(folder / inside)
    found = {f"{inside}/{name}" if inside else name: value for name, value in found.items()}
    known = {name: value for name, value in told.items() if not inside or name.startswith(f"{inside}/")}
    said = dict.fromkeys(known.keys() - found.keys(), "is missing")
    said |= dict.fromkeys(found.keys() - known.keys(), "is not what was written")
    said |= {name: "is damaged" for name in known.keys() & found.keys() if known[name] != found[name]}
    return [f"{folder / name} {what}: ask the function again" for name, what in sorted(said.items())]


def files(path: Path) -> list[Path]:
    """All annotation files of the trace at `path`."""
    return [file for name in DIRECTORIES for file in sorted((path / name).glob("*.parquet")) if file.name[0] != "."]


def hindsight(path: Path) -> pa.Table:
    """All rows of hindsight metrics: step, name, value, source, generation; the highest generation counts."""
    return _read(path, "hindsight", _HINDSIGHT)


def verdicts(path: Path) -> pa.Table:
    """All verdicts, as VERDICTS says; the highest generation counts. `time`: when it was given, infinite if unknown."""
    return _read(path, "verdicts", VERDICTS)


def verdict_rows(file: Path) -> pa.Table:
    """The verdicts of one file. Raise DamageError, KeyError or ArrowException where they cannot be read."""
    rows = read(file)
    if "time" not in rows.column_names:
        rows = rows.append_column("time", pa.array([_time(file)] * len(rows), pa.float64()))
    for field in list(VERDICTS)[4:]:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(VERDICTS.names).cast(VERDICTS)


def _read(path: Path, directory: str, schema: pa.Schema) -> pa.Table:
    found = []
    for line in missing(path):
        if f"/{directory}/" in line:
            _log.warning("%s", line)
    for file in files(path):
        if file.parent.name == directory:
            try:
                rows = verdict_rows(file) if directory == "verdicts" else read(file).select(schema.names).cast(schema)
                found.append(rows)
            except (DamageError, pa.ArrowException, KeyError) as error:
                # What was found out later is not worth the rest: it is left out, and can be found out again.
                _log.warning("%s", error)
    return pa.concat_tables([schema.empty_table(), *found])


def _time(file: Path) -> float:
    """When an annotation file was written, as the facts beside it say, which were proven with it."""
    try:
        return float(_facts(file)["time"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _facts(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.with_suffix(".json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read(file: Path) -> pa.Table:
    """The rows of one annotation file. Raise DamageError."""
    beside = file.with_suffix(".json")
    facts = None
    if beside.exists():
        try:
            data = beside.read_bytes()
            facts = json.loads(data)
            if not proven(data, facts):
                raise ValueError("its sum is another's")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise DamageError(f"{beside} is damaged ({error}): {file.name} is left out", path=beside) from None
    known = facts if facts is not None and "xxh3" in facts else None
    return ParquetFile(file, known, "it is left out").table()
