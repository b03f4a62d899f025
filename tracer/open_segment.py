"""An open segment: the steps that lie in a tail file, of a run that goes on or that was never sealed.

Room: tracer. May touch: reads the tail it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tracer import known_tail
from tracer.errors import DamageError, NotATraceError
from tracer.ranges import Ranges
from tracer.segments import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from pathlib import Path

    import pyarrow as pa

    from tracer.known_tail import Forms, View
    from tracer.packing import PackedLayout
    from tracer.segments import Key
    from tracer.tables import Columns
    from tracer.tail import Record


class OpenSegment:
    """Reads one tail file as it grows; `refresh` takes in what became whole since."""

    def __init__(self, path: Path, key: Key) -> None:
        """Open the tail at `path`. Raise FileNotFoundError where it has been sealed meanwhile."""
        self.session, self.sequence = key
        self.path = path
        self._tail = known_tail.at(path)
        self._view = known_tail.NOTHING
        self._variants: tuple[View, dict[str, tuple[Variant, ...]]] | None = None

    def refresh(self) -> bool:
        """Take in new whole records; return whether there were any. Damage is kept in `damage`, not raised."""
        before, self._view = self._view, self._tail.look()
        return self._view.count > before.count

    @property
    def begin(self) -> dict[str, Any]:
        """The header of the first record; empty where that is not whole."""
        return self._tail.begin if self._view.count else {}

    @property
    def records(self) -> list[Record]:
        """All whole records, in order."""
        return self._tail.records[: self._view.count]

    @property
    def count(self) -> int:
        """How many whole records there are."""
        return self._view.count

    @property
    def damage(self) -> DamageError | NotATraceError | None:
        """What ended the reading."""
        return self._view.damage

    @property
    def closed(self) -> bool:
        """Whether the session ended here, by its own word."""
        return self._view.closed

    @property
    def close_record(self) -> dict[str, Any] | None:
        """The header of the record that ended the session."""
        record = self._tail.close_record if self._view.closed else None
        return record.header if record is not None else None

    @property
    def torn_bytes(self) -> int:
        """Bytes behind the last whole record."""
        return self._view.torn_bytes

    def close(self) -> None:
        """Let go of the file; others may be reading it still."""
        known_tail.forget_removed()

    @property
    def first_step(self) -> int:
        """The next step when the file was begun."""
        return int(self.begin.get("first_step", 0))

    @property
    def steps(self) -> Ranges:
        """The steps that were recorded."""
        return self._view.steps

    @property
    def states(self) -> Ranges:
        """The states whose weights are stored."""
        return self._view.states

    @property
    def grad_steps(self) -> Ranges:
        """The steps whose gradients are stored."""
        return self._view.grad_steps

    @property
    def state_records(self) -> dict[int, Record]:
        """The records with weights, by state."""
        return {k: self._tail.state_records[k] for k in self.states}

    @property
    def grad_records(self) -> dict[int, Record]:
        """The records with gradients, by step."""
        return {k: self._tail.grad_records[k] for k in self.grad_steps}

    @property
    def keyframes(self) -> tuple[int, ...]:
        """The states of which there are keyframes."""
        return self._view.keyframes

    def _forms(self) -> Forms:
        return self._tail.forms.upto(self._tail.records, self._view.count)

    @property
    def layouts(self) -> dict[int, PackedLayout]:
        """How states are packed, by number. Raise DamageError."""
        return self._forms().layouts

    @property
    def samples(self) -> dict[str, list[Record]]:
        """The records of samples by pool. Raise DamageError."""
        return {pool: list(records) for pool, records in self._forms().samples.items()}

    @property
    def captures(self) -> dict[str, tuple[Variant, ...]]:
        """The captures by key, in each form that they came in. Raise DamageError."""
        if self._variants is None or self._variants[0] is not self._view:
            found = {
                key: tuple(v for v in (self._variant(form, runs.now()) for form, runs in forms.items()) if v.steps.runs)
                for key, forms in list(self._forms().captures.items())
            }
            self._variants = (self._view, {key: forms for key, forms in found.items() if forms})
        return self._variants[1]

    def _variant(self, form: tuple, steps: Ranges) -> Variant:
        """Without the steps that came to the tail after we last looked."""
        return Variant(*form, steps=steps.upto(self.steps.runs[-1][1]) if self.steps.runs else Ranges())

    def header(self, step: int) -> dict[str, Any]:
        """The header of the step's record."""
        return self._tail.step_records[step].header

    def piece(self, step: int, name: str) -> bytes:
        """A section that replay needs."""
        return self._tail.step_records[step].read(name)

    @property
    def fingerprinted(self) -> Container[int]:
        """The states whose fingerprints are known."""
        return self._tail.print_records

    def layout_of(self, state: int) -> PackedLayout:
        """How a stored state is packed."""
        return self.layouts[self._tail.state_records[state].header["layout"]]

    def last_alike(self, state: int) -> int:
        """The state itself: a tail may have any layout at any record."""
        return state

    def fingerprint(self, state: int) -> str:
        """The fingerprint of a state, in hex."""
        return str(self._tail.print_records[state].header["fingerprint"])

    def words(self, state: int) -> tuple[PackedLayout, np.ndarray]:
        """A packed state, as words."""
        record = self._tail.state_records[state]
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
        record = self._tail.grad_records[step]
        layout = self.layouts[record.header["layout"]]
        return layout, np.frombuffer(record.read("grads"), layout.dtype)

    def capture(self, key: str, variant: Variant, steps: np.ndarray) -> np.ndarray:
        """The bytes of a capture at `steps`: uint8 [steps, bytes]."""
        rows = []
        for step in steps:
            record = self._tail.step_records[int(step)]
            place = next(i for i, c in enumerate(record.header["captures"]) if c["key"] == key)
            rows.append(np.frombuffer(record.read(f"capture{place}"), np.uint8))
        return np.stack(rows)

    def keyframe(self, state: int) -> tuple[Any, list[int], Callable[[], bytes]]:
        """A keyframe: its tree, the sizes of its buffers, what reads their bytes."""
        record = self._tail.frames[state]
        return record.header["tree"], record.header["buffers"], lambda: record.read("data")

    def blob(self, digest: str) -> bytes:
        """A content-addressed blob."""
        return self._forms().blobs[digest].read("data")

    def rows(self, name: str, columns: Columns, since: int, until: int) -> pa.Table:
        """The rows that table `name` of `tables.QUERIED` has of the records `since` to `until`. Raise DamageError."""
        from tracer import tables  # noqa: PLC0415 -- reading tensors needs no Arrow

        return tables.QUERIED[name](self._tail.records[since:until], self.session, columns)
