"""The Parquet files of a trace, read back only as they were written: held against the sum in the segment's commit.

The sum is that of the whole file, taken when it is opened; each page has one of its own, which is checked as it is
read. What a file claims to hold is checked before memory of that size is asked for.
Room: tracer. May touch: reads the file it is given.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tracer.errors import DamageError
from tracer.shard import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class ParquetFile:
    """One file, open; what is read of it is proven or DamageError."""

    def __init__(self, path: Path, facts: Mapping[str, Any] | None, lost: str) -> None:
        """Open `path`, of which a commit says `facts` (rows, xxh3; None: nothing). `lost`: what its damage means.

        Raise DamageError.
        """
        self.path = path
        self._lost = lost
        try:
            if facts is not None and _digest(path) != facts["xxh3"]:
                raise self._damage("is damaged")
            self._file = pq.ParquetFile(path, page_checksum_verification=True, memory_map=False)
        except FileNotFoundError:
            raise self._damage("is missing") from None
        except (OSError, pa.ArrowException, KeyError) as error:
            raise self._damage(f"cannot be read ({error})") from None
        self._check(facts)

    def _damage(self, what: str) -> DamageError:
        return DamageError(f"{self.path} {' '.join(what.split())}: {self._lost}", path=self.path)

    def _check(self, facts: Mapping[str, Any] | None) -> None:
        found = self._file.metadata
        if facts is not None and found.num_rows != facts.get("rows"):
            raise self._damage(f"has {found.num_rows} rows, not {facts.get('rows')}")
        for number in range(found.num_row_groups):
            if _claimed(found.row_group(number)) > MOST_BYTES:
                raise self._damage("claims to be larger than this machine's memory, and is refused")

    def group(self, number: int) -> pa.Table:
        """Row group `number`. Raise DamageError."""
        if not 0 <= number < self._file.num_row_groups:
            raise self._damage(f"has no row group {number}")
        return self._read(lambda: self._file.read_row_group(number, use_threads=False))

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, of these columns. Raise DamageError."""
        return self._read(lambda: self._file.read(columns, use_threads=False))

    def _read(self, read: Any) -> pa.Table:
        try:
            return read()
        except (OSError, pa.ArrowException) as error:
            raise self._damage(f"is damaged ({error})") from None


def _claimed(group: pq.RowGroupMetaData) -> int:
    """Bytes that a row group may need: a value of a dictionary may stand in every row."""
    need = 0
    for place in range(group.num_columns):
        column = group.column(place)
        own = max(0, column.total_uncompressed_size)
        repeated = column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page
        need += own * max(1, group.num_rows) if repeated else own + 16 * group.num_rows
    return need


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()
