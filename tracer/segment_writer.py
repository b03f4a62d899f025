"""Turns one open segment into a sealed one: its tensors into Zarr, its tables into Parquet, then the commit.

Life cycle, as one can observe it: (1) the tail is there and complete; (2) arrays grow and Parquet files of the
segment's name appear, of which readers take no notice; (3) `metrics/<name>.json` appears: it is sealed; (4) the
tail is gone (renamed to `.damaged` where part of it could not be read). A crash before (3) leaves the tail: sealing it
again writes the same rows and files again. What no later record changes may be done while the tail still grows
(`advance`), so that a recording's end waits for little.
Room: tracer. May touch: tensors.zarr, metrics/ and tail/ of the trace it is given; loads no torch.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tracer import arrays as names
from tracer import codecs, segments, tables
from tracer.arrays import Arrays
from tracer.errors import DamageError
from tracer.ranges import Ranges
from tracer.store import power_of_two

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyarrow as pa

    from tracer.manifest import SessionFacts
    from tracer.open_segment import OpenSegment
    from tracer.packing import PackedLayout
    from tracer.segments import Variant
    from tracer.store import ZarrArray
    from tracer.tail import Record

_GROUP_BYTES = 4 << 20
_FOLD_RECORDS = 256
_FOLD_BYTES = 64 << 20
"""The rows of so many records are made at a time while the tail grows, and about so many bytes of them held."""


class SegmentWriter:
    """Seals one segment; everything it learns goes into the commit."""

    def __init__(
        self,
        trace: Path,
        segment: OpenSegment,
        session: SessionFacts,
        batch: segments.Batch,
        columns: dict[str, tables.Columns],
    ) -> None:
        """`columns` are the names that SQL columns have in the segments before; they learn this segment's."""
        self._trace = trace
        self.segment = segment
        self._arrays = Arrays(trace, batch)
        self._batch = batch
        self._columns = columns
        self._shift = session.first_row - session.first_step
        self._session = session
        self.damage: list[str] = []
        self._touched: list[ZarrArray] = []
        self._name = segments.name_of((segment.session, segment.sequence))
        self._records: list[Record] = []
        self._proven = 0
        self._folded = 0
        self._pieces: dict[str, list[pa.Table]] = {"steps": [], "replay": []}
        self._frames: dict[int, dict[str, Any]] = {}

    def advance(self) -> None:
        """Do ahead what no later record changes: prove what came, put keyframes on the disk, make rows of tables.

        Raise OSError where the disk refuses.
        """
        self.segment.refresh()
        self._prove()
        for state in self.segment.keyframes:
            # Until its step is over a state may be captured again.
            if state in self.segment.steps and state not in self._frames:
                self._keyframe_ahead(state)
        held = sum(table.nbytes for table in self._pieces["replay"])
        if len(self._records) - self._folded >= _FOLD_RECORDS and held < _FOLD_BYTES:
            self._fold()

    def seal(self) -> None:
        """Write everything, commit, take the tail away. Raise OSError where the disk refuses."""
        segment = self.segment
        self._prove()
        if segment.damage:
            self.damage.insert(0, str(segment.damage))
        self._shard_rows = max(16, power_of_two(max(1, len(segment.steps)), names.SHARD_ROWS))
        steps = Ranges.of(r.header["step"] for r in self._records if r.kind == "step")
        facts = {
            "format": 1,
            "session": segment.session,
            "seq": segment.sequence,
            "first_step": segment.first_step,
            "last_step": steps.runs[-1][1] if steps.runs else None,
            "first_row": self._session.first_row,
            "session_first_step": self._session.first_step,
            "steps": steps.runs,
            "params": self._params(),
            "grads": self._grads(),
            "captures": self._captures(),
            "samples": self._samples(),
            "keyframes": self._keyframes(),
            "fingerprints": self._fingerprints(),
        }
        for array in self._touched:
            array.flush()
        facts["files"] = self._tables()
        facts["columns"] = {name: c.names for name, c in self._columns.items() if c.names}
        facts["closed"] = segment.close_record
        facts["last_time"] = max((r.header["time"] for r in segment.records if r.header.get("time")), default=None)
        facts["damage"] = self.damage
        self._batch.finish()
        segments.write_commit(self._trace, (segment.session, segment.sequence), facts)
        self._remove_tail()

    def _remove_tail(self) -> None:
        path = self.segment.path
        if self.damage:
            os.replace(path, path.with_suffix(".damaged"))
        else:
            path.unlink(missing_ok=True)

    def _rows(self, steps: Iterable[int]) -> np.ndarray:
        return np.array([k + self._shift for k in steps], np.int64)

    # -- tensors -------------------------------------------------------------------------------------------------------

    def _params(self) -> list[dict[str, Any]]:
        groups: dict[int, list[int]] = {}
        for state, record in sorted(self.segment.state_records.items()):
            groups.setdefault(record.header["layout"], []).append(state)
        unstored = [i for i in self.segment.layouts if i not in groups]
        for i in unstored:
            self._params_array(self.segment.layouts[i], 0)
        return [self._seal_states(self.segment.layouts[i], states) for i, states in groups.items()]

    def _params_array(self, layout: PackedLayout, rows: int) -> tuple[str, ZarrArray]:
        name = self._arrays.named("params", {"layout": json.loads(json.dumps(layout.table()))})
        spec = names.params_spec(layout, rows, self._shard_rows)
        spec.attributes["from"] = name.replace("params", "params_from", 1)
        return name, self._arrays.create(name, spec)

    def _seal_states(self, layout: PackedLayout, states: list[int]) -> dict[str, Any]:
        try:
            return self._seal_whole(layout, states)
        except (DamageError, ValueError):
            return self._seal_whole(layout, [k for k in states if self._is_whole(k)])

    def _seal_whole(self, layout: PackedLayout, states: list[int]) -> dict[str, Any]:
        """Raise DamageError, ValueError where one of `states` is not whole: then nothing of them counts as put."""
        rows = self._rows(states)
        name, array = self._params_array(layout, int(rows[-1]) + 1 if states else 0)
        origin = name.replace("params", "params_from", 1)
        if states:
            refs = codecs.plan(len(states))
            self._encode(array, states, rows, refs)
            self._touched.append(array)
            pairs = np.array([[rows[r] if r != codecs.ITSELF else r for r in pair] for pair in refs], np.int64)
            self._put(origin, names.from_spec(int(rows[-1]) + 1), rows, pairs)
        return {"array": name, "from": origin, "steps": Ranges.of(states).runs}

    def _encode(self, array: ZarrArray, states: list[int], rows: np.ndarray, refs: tuple[tuple[int, int], ...]) -> None:
        """Row by row; each is read once, and what is in its order is kept while rows around are predicted from it."""
        words: dict[int, np.ndarray] = {}
        ordered: dict[int, np.ndarray] = {}

        def read(i: int) -> np.ndarray:
            if i not in words:
                words[i] = self.segment.words(states[i])[1]
            return words[i]

        def order(i: int) -> np.ndarray:
            if i not in ordered:
                ordered[i] = codecs.order(read(i))
            return ordered[i]

        for i, (a, b) in enumerate(refs):
            for gone in [k for k in words if k < i - codecs.BLOCK]:
                del words[gone]
                ordered.pop(gone, None)
            stored = read(i)
            if a != codecs.ITSELF:
                stored = codecs.encode(order(i), order(a), order(b) if b != codecs.ITSELF else None)
            array.put_row(int(rows[i]), stored, fast=True)

    def _is_whole(self, state: int) -> bool:
        try:
            self.segment.words(state)
        except (DamageError, ValueError) as error:
            self.damage.append(str(error))
            return False
        return True

    def _put(self, name: str, spec: Any, rows: np.ndarray, values: np.ndarray) -> None:
        array = self._arrays.create(name, spec)
        array.put_rows(rows, values)
        self._touched.append(array)

    def _grads(self) -> list[dict[str, Any]]:
        groups: dict[int, list[int]] = {}
        for step, record in self.segment.grad_records.items():
            groups.setdefault(record.header["layout"], []).append(step)
        return [self._seal_grads(self.segment.layouts[i], steps) for i, steps in groups.items()]

    def _seal_grads(self, layout: PackedLayout, steps: list[int]) -> dict[str, Any]:
        name = self._arrays.named("grads", {"layout": json.loads(json.dumps(layout.table()))})
        spec = names.grads_spec(layout, int(self._rows(steps).max()) + 1, self._shard_rows)
        array = self._arrays.create(name, spec)
        done = []
        for step in steps:
            try:
                array.put_row(step + self._shift, self.segment.grads(step)[1], fast=True)
                done.append(step)
            except DamageError as error:
                self.damage.append(str(error))
        self._touched.append(array)
        return {"array": name, "steps": Ranges.of(done).runs}

    def _captures(self) -> dict[str, list[dict[str, Any]]]:
        return {key: [self._seal_capture(key, form) for form in forms] for key, forms in self.segment.captures.items()}

    def _seal_capture(self, key: str, form: Variant) -> dict[str, Any]:
        spec = names.capture_spec(key, form.dtype, form.shape, form.dims, self._shard_rows)
        fits = {"key": key, "dtype": form.dtype, "ndim": len(form.shape)}
        name = self._arrays.named(f"captures/{names.safe_path(key)}", fits, "~")
        array = self._arrays.create(name, spec)
        steps, values = self._whole_captures(key, form, spec.dtype)
        if steps:
            rows = self._rows(steps)
            array.grow((int(rows[-1]) + 1, *form.shape))
            array.put_rows(rows, values, fast=True)
            self._touched.append(array)
        described = {"dtype": form.dtype, "shape": form.shape, "dims": form.dims}
        return {**described, "array": name, "steps": Ranges.of(steps).runs}

    def _whole_captures(self, key: str, form: Variant, dtype: np.dtype) -> tuple[list[int], np.ndarray]:
        steps, rows = [], []
        for step in form.steps:
            try:
                rows.append(self.segment.capture(key, form, np.array([step]))[0])
                steps.append(step)
            except DamageError as error:
                self.damage.append(str(error))
        shape = (len(rows), *form.shape)
        return steps, np.stack(rows).view(dtype).reshape(shape) if rows else np.empty(shape, dtype)

    def _samples(self) -> dict[str, dict[str, Any]]:
        found = {}
        for pool, records in self.segment.samples.items():
            head = records[0].header
            spec = names.sample_spec(pool, head["dtype"], tuple(head["shape"]))
            fits = {"pool": pool, "dtype": head["dtype"]}
            name = self._arrays.named(f"samples/{names.safe_path(pool)}", fits, "~")
            array = self._arrays.create(name, spec)
            end = max(r.header["first"] + r.header["count"] for r in records)
            array.grow((end, *head["shape"]))
            sealed = [run for record in records for run in self._seal_samples(array, record, spec.dtype)]
            self._touched.append(array)
            first = head["first"]
            found[pool] = {"array": name, "first": first, "count": end - first, "ids": Ranges.merged(sealed).runs}
        return found

    def _seal_samples(self, array: ZarrArray, record: Any, dtype: np.dtype) -> list[tuple[int, int]]:
        """Put the samples of a record into `array`; return the run of ids that were whole."""
        first, count = record.header["first"], record.header["count"]
        try:
            data = np.frombuffer(record.read("data"), np.uint8).view(dtype)
        except DamageError as error:
            self.damage.append(str(error))
            return []
        array.put_rows(np.arange(first, first + count), data.reshape(count, *record.header["shape"]))
        return [(first, first + count - 1)] if count else []

    def _keyframes(self) -> list[dict[str, Any]]:
        found = []
        for state in self.segment.keyframes:
            if state in self._frames:
                found.append(self._frames[state])
                continue
            try:
                facts, array = self._put_keyframe(state, self._arrays)
            except DamageError as error:
                self.damage.append(str(error))
                continue
            self._touched.append(array)
            found.append(facts)
        return found

    def _keyframe_ahead(self, state: int) -> None:
        batch = segments.Batch()
        try:
            facts, array = self._put_keyframe(state, Arrays(self._trace, batch))
        except DamageError:
            return  # `seal` names it
        array.flush()
        batch.finish()
        self._frames[state] = facts

    def _put_keyframe(self, state: int, arrays: Arrays) -> tuple[dict[str, Any], ZarrArray]:
        tree, sizes, read = self.segment.keyframe(state)
        data = read()
        name = f"keyframes/{self.segment.session}-{state}"
        attributes = {"tree": json.dumps(tree), "buffers": sizes, "step": state}
        array = arrays.create(name, names.keyframe_spec(len(data), attributes))
        array.grow((len(data),), attributes)
        array.put_all(np.frombuffer(data, np.uint8))
        return {"step": state, "array": name, "bytes": len(data)}, array

    def _fingerprints(self) -> tuple[tuple[int, int], ...]:
        known = {k: self.segment.fingerprint(k) for k in self.segment.fingerprinted}
        if known:
            states = sorted(known)
            rows = self._rows(states)
            values = np.array([int(known[k], 16) for k in states], np.uint64)
            self._put("fingerprints", names.fingerprint_spec(int(rows[-1]) + 1), rows, values)
        return Ranges.of(known).runs

    # -- tables --------------------------------------------------------------------------------------------------------

    def _tables(self) -> dict[str, dict[str, Any]]:
        records, session = self._records, self.segment.session
        found: dict[str, dict[str, Any]] = {}
        self._fold()
        steps, replay = (tables.concat(pieces).combine_chunks() for pieces in self._pieces.values())
        for name, make in tables.QUERIED.items():
            whole = steps if name == "steps" else make(records, session, self._columns[name])
            self._write_table(found, name, whole)
        self._write_table(found, "blobs", tables.blobs(records))
        if not tables.is_ascending(replay):
            replay = tables.replay(records)
        # A few MB a row group: a step is read with its neighbours, not with all of the segment.
        rows = max(1, min(len(replay), len(replay) * _GROUP_BYTES // max(1, replay.nbytes)))
        self._write_table(found, "replay", replay, group=rows)
        return found

    def _fold(self) -> None:
        """Make the rows that the records since the last time have in the tables of a row a step."""
        new = self._records[self._folded :]
        self._pieces["steps"].append(tables.steps(new, self.segment.session, self._columns["steps"]))
        self._pieces["replay"].append(tables.replay(new))
        self._folded = len(self._records)

    def _prove(self) -> None:
        """Take in the new records whose small sections are whole: a damaged one would stop the tables of all others."""
        for record in self.segment.records[self._proven :]:
            try:
                for section in record.sections:
                    if record.kind == "blob" or (record.kind == "step" and section.name not in ("weights", "grads")):
                        record.read(section.name)
                self._records.append(record)
            except DamageError as error:
                self.damage.append(str(error))
        self._proven = self.segment.count

    def _write_table(
        self, found: dict[str, dict[str, Any]], name: str, table: pa.Table, group: int | None = None
    ) -> None:
        if not len(table):
            return
        data = tables.parquet(table, group)
        self._batch.write(self._trace / "metrics" / f"{self._name}.{name}.parquet", data)
        found[name] = {"rows": len(table), "bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}
        if group is not None:
            found[name]["group"] = group
