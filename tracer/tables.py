"""What a trace says as Arrow tables: one function per table, from the records of a tail.

A sealed segment holds these tables as Parquet, a reader of a live run holds those of the open tail in memory: both come
from here, so that SQL cannot tell them apart.
Room: tracer. Pure, but for the bytes of the records that it reads.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tracer.tail import Record

_I64, _I32, _F64, _TEXT = pa.int64(), pa.int32(), pa.float64(), pa.string()
SCHEMAS: dict[str, pa.Schema] = {
    "steps": pa.schema(
        {
            "step": _I64,
            "session": _I32,
            "epoch": _I64,
            "batch_index": _I64,
            "batch_size": _I64,
            "loss": _F64,
            "lr": _F64,
            "grad_norm": _F64,
            "time": _F64,
            "duration": _F64,
            "fingerprint": _TEXT,
        }
    ),
    "features": pa.schema({"step": _I64, "session": _I32, "layer": _TEXT, "feature": _I32}),
    "captures": pa.schema(
        {"step": _I64, "session": _I32, "key": _TEXT, "dtype": _TEXT, "shape": pa.list_(_I64), "bytes": _I64}
    ),
    "keyframes": pa.schema({"step": _I64, "session": _I32, "bytes": _I64, "digest": _TEXT}),
    "events": pa.schema({"step": _I64, "session": _I32, "kind": _TEXT, "detail": _TEXT, "time": _F64}),
    "epochs": pa.schema(
        {"session": _I32}
        | dict.fromkeys(["epoch", "first_step", "last_step", "samples", "offered", "kept", "written", "dropped"], _I64)
    ),
}
RECORDED = ("loss", "lr", "grad_norm")
"""The scalars of a step that the recorder finds by itself."""
_WIDENED = {"float16": "float32", "bfloat16": "float32", "bool": "uint8"}
_NUMBERS = {"float32", "float64", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"}


class Columns:
    """Names of scalars and features as names of columns: SQL knows no upper case, and some names are taken."""

    def __init__(self, taken: Iterable[str], known: Mapping[str, str] | None = None) -> None:
        """`known` are the columns {name: column} that earlier segments of the trace have."""
        self._taken = {name.lower() for name in (*taken, "verdict", "superseded", "kept")}
        self.names: dict[str, str] = {}
        self.learn(known or {})

    def learn(self, known: Mapping[str, str]) -> None:
        """Take over {name: column} of another segment."""
        self.names.update(known)
        self._taken |= {column.lower() for column in known.values()}

    def column(self, name: str) -> str:
        """The column of `name`: its own name, where that is free."""
        if name not in self.names:
            column = name or "_"
            if column.lower() in self._taken:
                column = f"{name}_{xxhash.xxh3_64_hexdigest(name.encode())[:4]}"
            self._taken.add(column.lower())
            self.names[name] = column
        return self.names[name]


def steps(records: Sequence[Record], session: int, columns: Columns) -> pa.Table:
    """One row per kept step; every logged scalar is a further float64 column, null where it was not logged."""
    headers = [r.header for r in records if r.kind == "step" and r.header["kept"]]
    schema = SCHEMAS["steps"]
    data = {f.name: pa.array([h.get(f.name) for h in headers], f.type) for f in schema if f.name != "session"}
    data["session"] = pa.array([session] * len(headers), _I32)
    table = pa.table({name: data[name] for name in schema.names}, schema=schema)
    names = dict.fromkeys(name for h in headers for name in h.get("logs", ()))
    for name in names:
        values = pa.array([_scalar(h.get("logs", {}).get(name)) for h in headers], _F64)
        if name in RECORDED:
            place = schema.get_field_index(name)
            table = table.set_column(place, name, _first_of(table.column(name).combine_chunks(), values))
        else:
            table = table.append_column(columns.column(name), values)
    return table


def _scalar(value: Any) -> float | None:
    return None if value is None else float(value)


def _first_of(one: pa.Array, other: pa.Array) -> pa.Array:
    """`one` where it is not null, else `other`: what the program logs stands in for what was not found."""
    return pa.array([b if a is None else a for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True)], _F64)


def is_feature(capture: Mapping[str, Any]) -> bool:
    """Whether a captured tensor is a column of `features`: 1-D, real, its one dimension being the feature."""
    dims = capture.get("dims")
    numeric = _WIDENED.get(capture["dtype"], capture["dtype"]) in _NUMBERS
    return numeric and len(capture["shape"]) == 1 and (dims is None or list(dims) == ["feature"])


def features(records: Sequence[Record], session: int, columns: Columns) -> pa.Table:
    """One row per kept step, layer and feature; a column per captured [D] tensor."""
    groups: dict[tuple, list[tuple[int, list[np.ndarray]]]] = {}
    for record in records:
        if record.kind != "step":
            continue
        for layer, found in _by_layer(record).items():
            signature = (layer, tuple((name, str(a.dtype), len(a)) for name, a in found))
            groups.setdefault(signature, []).append((record.header["step"], [a for _, a in found]))
    tables = [SCHEMAS["features"].empty_table()]
    for (layer, signature), rows in groups.items():
        for size in dict.fromkeys(size for _, _, size in signature):
            chosen = [i for i, (_, _, n) in enumerate(signature) if n == size]
            names = [columns.column(signature[i][0]) for i in chosen]
            tables.append(_feature_block(layer, session, size, names, [(s, [a[i] for i in chosen]) for s, a in rows]))
    return concat(tables)


def _by_layer(record: Record) -> dict[str, list[tuple[str, np.ndarray]]]:
    layers: dict[str, list[tuple[str, np.ndarray]]] = {}
    for i, capture in enumerate(record.header.get("captures", ())):
        if is_feature(capture):
            layer, _, name = capture["key"].rpartition("/")
            layers.setdefault(layer, []).append((name, numbers(record.read(f"capture{i}"), capture["dtype"])))
    return layers


def _feature_block(
    layer: str, session: int, size: int, names: list[str], rows: list[tuple[int, list[np.ndarray]]]
) -> pa.Table:
    steps_ = np.repeat(np.array([step for step, _ in rows], np.int64), size)
    count = len(steps_)
    data: dict[str, Any] = {
        "step": steps_,
        "session": np.full(count, session, np.int32),
        "layer": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([layer])).cast(_TEXT),
        "feature": np.tile(np.arange(size, dtype=np.int32), len(rows)),
    }
    for i, name in enumerate(names):
        # from_numpy keeps NaN: only Arrow's pandas conversion would make it null.
        data[name] = pa.array(np.concatenate([arrays[i] for _, arrays in rows]) if rows else [])
    return pa.table(data)


def numbers(data: bytes, dtype: str) -> np.ndarray:
    """The elements of `data` (torch's name `dtype`) as a NumPy array of a type that SQL knows."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "float16":
        return np.frombuffer(data, np.float16).astype(np.float32)
    return np.frombuffer(data, np.dtype(_WIDENED.get(dtype, dtype)))


def captures(records: Sequence[Record], session: int, columns: Columns | None = None) -> pa.Table:
    """One row per captured tensor and step; `bytes` uncompressed."""
    rows = []
    for record in records:
        sizes = {s.name: s.nbytes for s in record.sections}
        for i, c in enumerate(record.header.get("captures", ()) if record.kind == "step" else ()):
            size = sizes[f"capture{i}"]
            rows.append((record.header["step"], session, c["key"], c["dtype"], list(c["shape"]), size))
    return _from_rows("captures", rows)


def keyframes(records: Sequence[Record], session: int, columns: Columns | None = None) -> pa.Table:
    """One row per keyframe."""
    found = [r.header for r in records if r.kind == "keyframe"]
    return _from_rows("keyframes", [(h["step"], session, sum(h["buffers"]), h.get("digest")) for h in found])


def events(records: Sequence[Record], session: int, columns: Columns | None = None) -> pa.Table:
    """One row per event; a step that an exception cut short is one too."""
    rows = []
    for header in (r.header for r in records if r.kind in ("event", "unfinished")):
        kind = header.get("event", header["kind"])
        rows.append((header.get("step"), session, kind, header.get("detail"), header.get("time")))
    return _from_rows("events", rows)


def epochs(records: Sequence[Record], session: int, columns: Columns | None = None) -> pa.Table:
    """One row per finished epoch."""
    names = [f.name for f in SCHEMAS["epochs"]][1:]
    found = [r.header for r in records if r.kind == "epoch"]
    return _from_rows("epochs", [(session, *(h.get(name) for name in names)) for h in found])


def replay(records: Sequence[Record]) -> pa.Table:
    """One row per step, kept or not: its header as JSON, and a binary column for each section that replay needs."""
    # One row a step, in order, as the readers of a segment count them: a step that was written twice is its last record.
    found = [r for _, r in sorted({r.header["step"]: r for r in records if r.kind == "step"}.items())]
    data: dict[str, Any] = {
        "step": pa.array([r.header["step"] for r in found], _I64),
        "record": pa.array([json.dumps(r.header, separators=(",", ":")) for r in found], pa.large_string()),
    }
    names = dict.fromkeys(s.name for r in found for s in r.sections if is_piece(s.name))
    for name in names:
        present = [any(s.name == name for s in r.sections) for r in found]
        pieces = [r.read(name) if there else None for r, there in zip(found, present, strict=True)]
        data[name] = pa.array(pieces, pa.large_binary())
    return pa.table(data)


def is_ascending(table: pa.Table) -> bool:
    """Whether each step of the table comes after the one before it."""
    return bool(np.all(np.diff(table["step"].to_numpy()) > 0))


def is_piece(section: str) -> bool:
    """Whether a section of a step belongs to its replay data: not a state, gradient or capture."""
    return section not in ("weights", "grads") and not section.startswith("capture")


def blobs(records: Sequence[Record]) -> pa.Table:
    """One row per content-addressed blob."""
    found = [r for r in records if r.kind == "blob"]
    return pa.table(
        {
            "blob": pa.array([r.header["blob"] for r in found], _TEXT),
            "data": pa.array([r.read("data") for r in found], pa.large_binary()),
        }
    )


QUERIED: dict[str, Callable[..., pa.Table]] = {
    "steps": steps,
    "features": features,
    "captures": captures,
    "keyframes": keyframes,
    "events": events,
    "epochs": epochs,
}
"""The tables that SQL sees, by name: (records, session, columns) -> table."""


def parquet(table: pa.Table, group: int | None = None) -> bytes:
    """The table as a Parquet file, `group` rows in a row group.

    Minimum and maximum are left out of columns with NaN: they do not count it, and DuckDB would then skip the rows with
    NaN in `where isnan(loss)` or `where loss > 1`.
    """
    known = [name for name, column in zip(table.column_names, table.columns, strict=True) if not _has_nan(column)]
    sink = io.BytesIO()
    encoded = [name for name in ("layer", "key", "dtype", "name") if name in table.column_names]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=group,
        use_dictionary=encoded,
        write_statistics=known,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _has_nan(column: pa.ChunkedArray) -> bool:
    return pa.types.is_floating(column.type) and bool(pc.any(pc.is_nan(column)).as_py())


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables; columns that one lacks are null there, and types widen."""
    return pa.concat_tables(tables, promote_options="permissive")


def _from_rows(name: str, rows: list[tuple]) -> pa.Table:
    schema = SCHEMAS[name]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
