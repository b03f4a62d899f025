"""An open segment: the steps that lie in a tail file, of a run that goes on or that was never sealed.

Room: tracer. May touch: reads the tail it is given.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tracer.errors import DamageError, NotATraceError
from tracer.packing import PackedLayout
from tracer.ranges import Ranges
from tracer.segments import Variant
from tracer.tail import Record, TailReader

_log = logging.getLogger("rewind")

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    import pyarrow as pa

    from tracer.segments import Key
    from tracer.tables import Columns


class OpenSegment:
    """Reads one tail file as it grows; `refresh` takes in what became whole since."""

    def __init__(self, path: Path, key: Key) -> None:
        """Open the tail at `path`. Raise FileNotFoundError where it has been sealed meanwhile."""
        self.session, self.sequence = key
        self.path = path
        self.begin: dict[str, Any] = {}
        self.records: list[Record] = []
        self.damage: DamageError | NotATraceError | None = None
        self.layouts: dict[int, PackedLayout] = {}
        self.layout_headers: dict[int, dict[str, Any]] = {}
        self.samples: dict[str, list[Record]] = {}
        self.step_records: dict[int, Record] = {}
        self.state_records: dict[int, Record] = {}
        self.grad_records: dict[int, Record] = {}
        self.frames: dict[int, Record] = {}
        self.fingerprints: dict[int, str] = {}
        self._blobs: dict[str, Record] = {}
        self._tables: dict[str, tuple[int, list[pa.Table]]] = {}
        self._known: dict[str, tuple[int, Ranges]] = {}
        self._reader = TailReader(path)
        self._captures: dict[str, dict[tuple, list[int]]] = {}
        self.close_record: dict[str, Any] | None = None
        self.rolled = False

    def refresh(self) -> bool:
        """Take in new whole records; return whether there were any. Damage is kept in `damage`, not raised."""
        before = len(self.records)
        if self.damage is None:
            try:
                for record in self._reader.new_records():
                    self._take(record)
            except (DamageError, NotATraceError) as error:
                self.damage = error
                _log.warning("%s; what follows there cannot be read", error)
        return len(self.records) > before

    @property
    def closed(self) -> bool:
        """Whether the session ended here, by its own word."""
        return self.close_record is not None

    @property
    def torn_bytes(self) -> int:
        """Bytes behind the last whole record."""
        return self._reader.torn_bytes

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _take(self, record: Record) -> None:
        self.records.append(record)
        take = getattr(self, f"_take_{record.kind}", None)
        if take is not None:
            take(record)

    def _take_begin(self, record: Record) -> None:
        self.begin = record.header

    def _take_layout(self, record: Record) -> None:
        self.layouts[record.header["layout"]] = PackedLayout.of(record.header)
        self.layout_headers[record.header["layout"]] = record.header

    def _take_samples(self, record: Record) -> None:
        self.samples.setdefault(record.header["pool"], []).append(record)

    def _take_blob(self, record: Record) -> None:
        self._blobs[record.header["blob"]] = record

    def _take_keyframe(self, record: Record) -> None:
        self.frames[record.header["step"]] = record

    def _take_state(self, record: Record) -> None:
        step = record.header["step"]
        self.fingerprints[step] = record.header["fingerprint"]
        self.state_records[step] = record

    def _take_step(self, record: Record) -> None:
        header = record.header
        step = header["step"]
        self.step_records[step] = record
        self.fingerprints[step + 1] = header["fingerprint"]
        names = {s.name for s in record.sections}
        if "weights" in names:
            self.state_records[step + 1] = record
        if "grads" in names:
            self.grad_records[step] = record
        for capture in header["captures"]:
            dims = tuple(capture["dims"]) if capture.get("dims") is not None else None
            form = (capture["dtype"], tuple(capture["shape"]), dims)
            self._captures.setdefault(capture["key"], {}).setdefault(form, []).append(step)

    def _take_close(self, record: Record) -> None:
        self.close_record = record.header

    def _take_roll(self, record: Record) -> None:
        self.rolled = True

    @property
    def first_step(self) -> int:
        """The next step when the file was begun."""
        return int(self.begin.get("first_step", 0))

    @property
    def steps(self) -> Ranges:
        """The steps that were recorded."""
        return self._ranges("steps", self.step_records)

    @property
    def states(self) -> Ranges:
        """The states whose weights are stored."""
        return self._ranges("states", self.state_records)

    @property
    def grad_steps(self) -> Ranges:
        """The steps whose gradients are stored."""
        return self._ranges("grads", self.grad_records)

    def _ranges(self, name: str, numbers: dict[int, Record]) -> Ranges:
        if self._known.get(name, (-1,))[0] != len(numbers):
            self._known[name] = (len(numbers), Ranges.of(numbers))
        return self._known[name][1]

    @property
    def keyframes(self) -> tuple[int, ...]:
        """The states of which there are keyframes."""
        return tuple(self.frames)

    @property
    def captures(self) -> dict[str, tuple[Variant, ...]]:
        """The captures by key, in each form that they came in."""
        return {
            key: tuple(Variant(*form, steps=Ranges.of(steps)) for form, steps in forms.items())
            for key, forms in self._captures.items()
        }

    def header(self, step: int) -> dict[str, Any]:
        """The header of the step's record."""
        return self.step_records[step].header

    def piece(self, step: int, name: str) -> bytes:
        """A section that replay needs."""
        return self.step_records[step].read(name)

    @property
    def fingerprinted(self) -> Container[int]:
        """The states whose fingerprints are known."""
        return self.fingerprints

    def layout_of(self, state: int) -> PackedLayout:
        """How a stored state is packed."""
        return self.layouts[self.state_records[state].header["layout"]]

    def last_alike(self, state: int) -> int:
        """The state itself: a tail may have any layout at any record."""
        return state

    def fingerprint(self, state: int) -> str:
        """The fingerprint of a state, in hex."""
        return self.fingerprints[state]

    def words(self, state: int) -> tuple[PackedLayout, np.ndarray]:
        """A packed state, as words."""
        record = self.state_records[state]
        layout = self.layouts[record.header["layout"]]
        data = record.read("weights")
        # Their section has no sum of its own: the hashes of the tensors prove it.
        for entry, proof in zip(layout.entries, record.header["hashes"], strict=True):
            if xxhash.xxh3_64_intdigest(memoryview(data)[entry.offset : entry.offset + entry.nbytes]) != proof:
                raise DamageError(
                    f"{self.path}: {entry.name} of state {state} is damaged",
                    step=state,
                    tensor=entry.name,
                    path=self.path,
                )
        return layout, np.frombuffer(data, layout.dtype)

    def columns(self, states: np.ndarray, first: int, last: int) -> np.ndarray:
        """Words `first` to `last` of several states packed alike: [states, words]."""
        return np.stack([self.words(int(k))[1][first:last] for k in states])

    def grads(self, step: int) -> tuple[PackedLayout, np.ndarray]:
        """The gradients of a step, as words."""
        record = self.grad_records[step]
        layout = self.layouts[record.header["layout"]]
        return layout, np.frombuffer(record.read("grads"), layout.dtype)

    def capture(self, key: str, variant: Variant, steps: np.ndarray) -> np.ndarray:
        """The bytes of a capture at `steps`: uint8 [steps, bytes]."""
        rows = []
        for step in steps:
            record = self.step_records[int(step)]
            place = next(i for i, c in enumerate(record.header["captures"]) if c["key"] == key)
            rows.append(np.frombuffer(record.read(f"capture{place}"), np.uint8))
        return np.stack(rows)

    def keyframe(self, state: int) -> tuple[Any, list[int], bytes]:
        """A keyframe: its tree, the sizes of its buffers, their bytes."""
        record = self.frames[state]
        return record.header["tree"], record.header["buffers"], record.read("data")

    def blob(self, digest: str) -> bytes:
        """A content-addressed blob."""
        return self._blobs[digest].read("data")

    def table(self, name: str, columns: Columns) -> pa.Table:
        """Table `name` of `tables.QUERIED`, grown by what is new."""
        from tracer import tables  # noqa: PLC0415 -- reading tensors needs no Arrow

        seen, parts = self._tables.get(name, (0, []))
        if seen < len(self.records) or not parts:
            parts = [*parts, tables.QUERIED[name](self.records[seen:], self.session, columns)]
            parts = [tables.concat(parts)] if len(parts) > 8 else parts
            self._tables[name] = (len(self.records), parts)
        return tables.concat(parts)
