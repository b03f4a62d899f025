"""Downloads of what is shown: columns as CSV, JSON, Parquet or NPZ, NaN kept (S2.4).

JSON has no NaN: NaN and the infinities are the strings "NaN", "Infinity" and "-Infinity".
Room: apps. Pure, but for `Exports`, which keeps what was offered last in memory.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from apps.terminal import jsonable
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tracer import Trace

FORMATS: Final = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "npz": "application/octet-stream",
}
_KEPT: Final = 16


def encode(columns: Mapping[str, NDArray[Any]], form: str) -> bytes:
    """Columns of one length as the bytes of a file. Raise UsageError for another format."""
    if form not in FORMATS:
        raise UsageError(f"no format {form!r}; there are: {', '.join(FORMATS)}")
    if form != "npz":
        # A table has columns: pictures and whole matrices go into .npz alone.
        columns = {n: v for n, v in columns.items() if np.ndim(v) == 1}
    return _ENCODERS[form](columns)


def _csv(columns: Mapping[str, NDArray[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(np.asarray(v).tolist() for v in columns.values()), strict=True))
    return text.getvalue().encode()


def _json(columns: Mapping[str, NDArray[Any]]) -> bytes:
    rows = zip(*(np.asarray(v).tolist() for v in columns.values()), strict=True)
    return json.dumps([jsonable(dict(zip(columns, row, strict=True))) for row in rows], indent=0).encode()


def _parquet(columns: Mapping[str, NDArray[Any]]) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 -- only where it is asked for
    from pyarrow import parquet  # noqa: PLC0415

    out = io.BytesIO()
    parquet.write_table(pa.table({n: pa.array(np.asarray(v)) for n, v in columns.items()}), out)
    return out.getvalue()


def _npz(columns: Mapping[str, NDArray[Any]]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **{n: _typed(np.asarray(v)) for n, v in columns.items()})
    return out.getvalue()


def _typed(values: NDArray[Any]) -> NDArray[Any]:
    """Values that NumPy stores as they are: of objects it would make pickles. None is NaN among numbers, else no words."""
    if values.dtype.kind != "O":
        return values
    known = [v for v in values.ravel().tolist() if v is not None]
    if known and all(isinstance(v, float | int) for v in known):
        whole = all(isinstance(v, int) for v in known) and len(known) == values.size
        if not whole:
            return np.where(values == None, np.nan, values).astype(np.float64)  # noqa: E711 -- for each of them
        with suppress(OverflowError):
            return values.astype(np.int64)
    return np.array(["" if v is None else str(v) for v in values.ravel().tolist()], dtype=str).reshape(values.shape)


_ENCODERS = {"csv": _csv, "json": _json, "parquet": _parquet, "npz": _npz}


class Exports:
    """What pages offered for download: the last few, each under a name that cannot be guessed."""

    def __init__(self) -> None:
        """Nothing is offered yet."""
        self._offered: OrderedDict[str, tuple[str, Mapping[str, NDArray[Any]]]] = OrderedDict()

    def offer(self, name: str, columns: Mapping[str, NDArray[Any]], form: str = "csv") -> str:
        """Keep `columns`; return the address, relative to the page, under which they are downloaded."""
        key = secrets.token_urlsafe(12)
        self._offered[key] = (name, columns)
        while len(self._offered) > _KEPT:
            self._offered.popitem(last=False)
        return f"export/{key}.{form}"

    def take(self, key: str) -> tuple[str, Mapping[str, NDArray[Any]]] | None:
        """What was offered under `key`: file name without suffix, and columns; None where it is gone."""
        return self._offered.get(key)


def view_columns(trace: Trace, view: str) -> dict[str, NDArray[Any]]:
    """A view of a trace as columns. Raise UsageError where there is no such view."""
    views = trace.schema()
    if view not in views:
        raise UsageError(f"no view {view!r}; there are: {', '.join(views)}")
    return {n: _whole(v) for n, v in trace.sql(f'select * from "{view}"').fetchnumpy().items()}


def state_columns(trace: Trace, k: int) -> dict[str, NDArray[Any]]:
    """State `k` of a trace by the names of its tensors; bfloat16 as float32. Raise StepError, MissingDataError."""
    return {n: np.asarray(t.float() if "bfloat16" in str(t.dtype) else t) for n, t in trace.state(k).items()}


def _whole(values: Any) -> NDArray[Any]:
    """NULL as None: it is no NaN. NPZ, which has no NULL, gets NaN among numbers."""
    if not np.ma.getmaskarray(values).any():
        return np.asarray(values)
    return np.where(np.ma.getmaskarray(values), None, np.ma.getdata(values).astype(object))
