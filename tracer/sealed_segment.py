"""A sealed segment: steps that lie in Zarr and Parquet, behind a commit that never changes.

Room: tracer. May touch: reads the trace it is given.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tracer import codecs
from tracer.errors import DamageError
from tracer.packing import PackedLayout
from tracer.ranges import Ranges
from tracer.segments import Variant, name_of, read_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracer.arrays import Arrays
    from tracer.parquet import ParquetFile
    from tracer.segments import Key
    from tracer.store import ZarrArray

_CHUNKS = 12
_MOST_STEPS = 1 << 24
"""More steps than a segment ever has."""
_MOST_SAMPLES = 1 << 32


class SealedSegment:
    """Answers `segments.Segment` from what its commit says, which is read when it is first asked for anything."""

    def __init__(self, trace: Path, key: Key, arrays: Arrays) -> None:
        """Segment `key` of the trace at `trace`. Whatever is asked of it later may raise DamageError."""
        self.session, self.sequence = key
        self._trace = trace
        self._arrays = arrays
        self._lock = threading.Lock()
        self._layouts: dict[str, PackedLayout] = {}
        self._read: dict[str, _Rows] = {}

    @cached_property
    def _said(self) -> _Commit:
        name = name_of((self.session, self.sequence))
        path = self._trace / "metrics" / f"{name}.json"
        facts = read_commit(path)
        try:
            return _Commit.of(facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamageError(f"{path} is damaged: {error!r}", path=path) from None

    @property
    def first_step(self) -> int:
        """The next step when the segment was begun."""
        return self._said.first_step

    @property
    def steps(self) -> Ranges:
        """The steps that were recorded."""
        return self._said.steps

    @property
    def states(self) -> Ranges:
        """The states whose weights are stored."""
        return self._said.states

    @property
    def grad_steps(self) -> Ranges:
        """The steps whose gradients are stored."""
        return self._said.grad_steps

    @property
    def fingerprinted(self) -> Ranges:
        """The states whose fingerprints are known."""
        return self._said.fingerprinted

    @property
    def keyframes(self) -> tuple[int, ...]:
        """The states of which there are keyframes."""
        return tuple(self._said.frames)

    @property
    def samples(self) -> dict[str, dict[str, Any]]:
        """{pool: array, first, count, and `ids`, the runs of ids that are there}."""
        return self._said.samples

    @property
    def columns_of(self) -> dict[str, dict[str, str]]:
        """{table: {name: column}}."""
        return self._said.columns

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """{table: rows, bytes, xxh3 of its file}."""
        return self._said.files

    @property
    def damage(self) -> list[str]:
        """What could not be read when the segment was sealed, a line each."""
        return self._said.damage

    @property
    def closed(self) -> bool:
        """Whether the session ended here, by its own word."""
        return self._said.closed

    @cached_property
    def captures(self) -> dict[str, tuple[Variant, ...]]:
        """The captures by key, in each form that they came in."""
        try:
            return {key: tuple(_variant(form) for form in forms) for key, forms in self._said.captures.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise DamageError(f"{self._trace}: a commit is damaged: {error!r}", path=self._trace) from None

    def _row(self, k: int) -> int:
        return self._said.first_row + k

    # -- states --------------------------------------------------------------------------------------------------------

    def _params_of(self, state: int) -> str:
        for array, _, own in self._said.params:
            if state in own:
                return array
        raise KeyError(state)

    def _layout(self, array: str) -> PackedLayout:
        if array not in self._layouts:
            self._layouts[array] = PackedLayout.of(self._arrays.get(array).spec.attributes["layout"])
        return self._layouts[array]

    def layout_of(self, state: int) -> PackedLayout:
        """How a stored state is packed."""
        return self._layout(self._params_of(state))

    def last_alike(self, state: int) -> int:
        """The last of the stored states from `state` on, without a gap, that are packed as it is."""
        return next(own for _, _, own in self._said.params if state in own).run_end(state)

    def words(self, state: int) -> tuple[PackedLayout, np.ndarray]:
        """A packed state, as words."""
        array = self._params_of(state)
        layout = self._layout(array)
        return layout, self._decode(array, [state], 0, layout.width)[0]

    def columns(self, states: np.ndarray, first: int, last: int) -> np.ndarray:
        """Words `first` to `last` of several states packed alike: [states, words]."""
        return self._decode(self._params_of(int(states[0])), states.tolist(), first, last)

    def _decode(self, name: str, states: list[int], first: int, last: int) -> np.ndarray:
        decoder = self._decoder(name, [k + self._said.first_row for k in states])
        array = self._arrays.get(name)
        out = np.empty((len(states), last - first), array.spec.dtype)
        # A few chunks at a time: all that is predicted from one another then stays in the processor's cache.
        stride = _CHUNKS * array.spec.chunk[1]
        try:
            for start in range(first - first % stride, last, stride):
                begin, end = max(start, first), min(start + stride, last)
                out[:, begin - first : end - first] = decoder.decode(array.words(decoder.rows, begin, end))
        except DamageError as error:
            near = f"state {states[0]}" if len(states) == 1 else f"a state from {states[0]} on"
            raise DamageError(f"{near}: {error}", step=states[0], tensor=name, path=error.path) from None
        return out

    def _decoder(self, array: str, rows: list[int]) -> codecs.Decoder:
        """What decodes `rows`, out of those of this segment that they are predicted from."""
        # Packed as before once more, after states that were packed otherwise: then the array has two runs of states.
        alike = [(origin, own) for name, origin, own in self._said.params if name == array]
        origin, own = alike[0][0], Ranges.merged(run for _, own in alike for run in own.runs)
        try:
            return codecs.Decoder(self._by_row(origin, own), rows)
        except (KeyError, RecursionError):
            path = self._trace / "tensors.zarr" / origin
            raise DamageError(f"{path} names rows that no state of the segment has", path=path) from None

    def _by_row(self, array: str, own: Ranges) -> _Rows:
        if array not in self._read:
            self._read[array] = _Rows(lambda: self._arrays.get(array), self._said.first_row + own.array())
        return self._read[array]

    def fingerprint(self, state: int) -> str:
        """The fingerprint of a state, in hex."""
        return f"{self._by_row('fingerprints', self.fingerprinted)[self._row(state)]:016x}"

    def grads(self, step: int) -> tuple[PackedLayout, np.ndarray]:
        """The gradients of a step, as words."""
        for array, own in self._said.grads:
            if step in own:
                return self._layout(array), self._arrays.get(array).rows(np.array([self._row(step)]))[0]
        raise KeyError(step)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def header(self, step: int) -> dict[str, Any]:
        """The header of the step's record."""
        return json.loads(self._replay_row(step, "record"))

    def piece(self, step: int, name: str) -> bytes:
        """A section that replay needs."""
        data = self._replay_row(step, name)
        if data is None:
            raise KeyError(name)
        return data

    def _replay_row(self, step: int, column: str) -> Any:
        """Rows are read a group at a time: steps are mostly asked for in order."""
        place = self.steps.place(step)
        if place is None:
            raise KeyError(step)
        size = self.files["replay"]["group"] if "replay" in self.files else 1
        group = self._kept("replay", place // size, lambda: self._read_group(place // size, size))
        if column not in group:
            raise KeyError(column)
        return group[column][place % size]

    def _kept(self, name: str, number: int, read: Callable[[], tuple[Any, int]]) -> Any:
        with self._lock:
            return self._arrays.kept.get((self.session, self.sequence, name, number), read)

    def _read_group(self, number: int, size: int) -> tuple[dict[str, list], int]:
        table = self._file("replay").group(number)
        if table["step"].to_pylist() != self.steps.members(number * size, (number + 1) * size):
            raise DamageError(f"{self._file_of('replay')} holds other steps than its commit says", path=self._trace)
        return table.to_pydict(), table.nbytes

    def _file(self, name: str) -> ParquetFile:
        """A table of this segment, checked when it is opened and again as it is read."""
        key = (self.session, self.sequence, name)
        return self._arrays.files.get(key, lambda: (self.open_table(name), 1))

    def open_table(self, name: str) -> ParquetFile:
        """Open one of `files`, and check its sum. Raise DamageError."""
        from tracer.parquet import ParquetFile  # noqa: PLC0415 -- tensors are read without Arrow

        runs = self.steps.runs
        what = f"steps {runs[0][0]} to {runs[-1][1]}" if runs else "no steps"
        return ParquetFile(self._file_of(name), self.files[name], f"{what} of {name} cannot be read")

    def _file_of(self, name: str) -> Path:
        return self._trace / "metrics" / f"{name_of((self.session, self.sequence))}.{name}.parquet"

    def capture(self, key: str, variant: Variant, steps: np.ndarray) -> np.ndarray:
        """The bytes of a capture at `steps`: uint8 [steps, bytes]."""
        assert variant.array is not None
        rows = self._arrays.get(variant.array).rows(self._said.first_row + np.asarray(steps, np.int64))
        values = rows[(slice(None), *(slice(0, n) for n in variant.shape))]
        return np.ascontiguousarray(values).reshape(len(steps), -1).view(np.uint8)

    def keyframe(self, state: int) -> tuple[Any, list[int], Callable[[], bytes]]:
        """A keyframe: its tree, the sizes of its buffers, what reads their bytes."""
        array = self._arrays.get(self._said.frames[state]["array"])
        attributes = array.spec.attributes
        try:
            tree, sizes = json.loads(attributes["tree"]), attributes["buffers"]
            if attributes["step"] != state or sum(sizes) != array.spec.shape[0]:
                raise ValueError("its buffers are not of these sizes, or of another state")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise DamageError(
                f"{array.path}: keyframe {state} is damaged: {error!r}", step=state, path=array.path
            ) from None
        return tree, sizes, lambda: array.whole().tobytes()

    def rows_of(self) -> Iterator[tuple[str, np.ndarray]]:
        """The rows of each array that the commit says are there."""
        shift = self._said.first_row
        for array, origin, own in self._said.params:
            yield from ((name, own.array() + shift) for name in (array, origin))
        yield from ((array, own.array() + shift) for array, own in self._said.grads)
        for forms in self.captures.values():
            yield from ((form.array, form.steps.array() + shift) for form in forms if form.array is not None)
        yield from ((facts["array"], facts["ids"].array()) for facts in self.samples.values())
        if len(self.fingerprinted):
            yield "fingerprints", self.fingerprinted.array() + shift
        yield from ((facts["array"], np.arange(bool(facts["bytes"]))) for facts in self._said.frames.values())

    def blob(self, digest: str) -> bytes:
        """A content-addressed blob."""
        if "blobs" not in self.files:
            raise KeyError(digest)
        with self._lock:
            file = self._file("blobs")
            names = file.table(["blob"])["blob"].to_pylist()
            data = file.table(["data"])["data"][names.index(digest)].as_py() if digest in names else None
        if data is None:
            raise KeyError(digest)
        if xxhash.xxh3_128_hexdigest(data) != digest:
            raise DamageError(f"{file.path}: blob {digest} is damaged", path=file.path)
        return data

    def close(self) -> None:
        """Nothing is held that would have to be given back."""


class _Rows(dict[int, Any]):
    """What an array has for the rows of a segment, {row: value}: read a chunk at a time, where it is first asked for."""

    def __init__(self, array: Callable[[], ZarrArray], rows: np.ndarray) -> None:
        self._array, self._rows = array, rows

    def __missing__(self, row: int) -> Any:
        array = self._array()
        first = row - row % array.spec.chunk[0]
        near = self._rows[(self._rows >= first) & (self._rows < first + array.spec.chunk[0])]
        found = dict(zip(near.tolist(), array.rows(near).tolist(), strict=True))
        self.update(found)
        return found[row]


@dataclass(frozen=True)
class _Commit:
    """What a commit says, checked to be what can be."""

    first_step: int
    first_row: int
    steps: Ranges
    params: tuple[tuple[str, str, Ranges], ...]
    grads: tuple[tuple[str, Ranges], ...]
    states: Ranges
    grad_steps: Ranges
    fingerprinted: Ranges
    frames: dict[int, dict[str, Any]]
    captures: dict[str, list[dict[str, Any]]]
    samples: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, str]]
    files: dict[str, dict[str, Any]]
    damage: list[str]
    closed: bool

    @classmethod
    def of(cls, facts: dict[str, Any]) -> _Commit:
        """Return what `facts` say. Raise KeyError, TypeError, ValueError, AttributeError where they make no sense."""
        params = tuple((entry["array"], entry["from"], _ranges(entry["steps"])) for entry in facts["params"])
        grads = tuple((entry["array"], _ranges(entry["steps"])) for entry in facts["grads"])
        numbers = [facts[name] for name in ("first_step", "first_row", "session_first_step")]
        if any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"no rows and steps: {numbers}")
        if any(facts["files"][name]["group"] < 1 for name in ("replay",) if name in facts["files"]):
            raise ValueError("a row group of no rows")
        return cls(
            facts["first_step"],
            facts["first_row"] - facts["session_first_step"],
            _ranges(facts["steps"]),
            params,
            grads,
            _union([own for _, _, own in params]),
            _union([own for _, own in grads]),
            _ranges(facts["fingerprints"]),
            {entry["step"]: entry for entry in facts["keyframes"]},
            dict(facts["captures"]),
            {pool: _samples(found) for pool, found in facts["samples"].items()},
            dict(facts["columns"]),
            dict(facts["files"]),
            list(facts.get("damage", ())),
            facts.get("closed") is not None,
        )


def _samples(facts: dict[str, Any]) -> dict[str, Any]:
    first, count = facts["first"], facts["count"]
    runs = facts.get("ids", [[first, first + count - 1]] if count else [])
    return {**facts, "ids": _ranges(runs, _MOST_SAMPLES)}


def _ranges(runs: list[list[int]], most: int = _MOST_STEPS) -> Ranges:
    """The set that a commit lists. Raise ValueError where it is none, or larger than a segment can be."""
    found = Ranges(tuple((a, b) for a, b in runs))
    flat = [n for run in found.runs for n in run]
    if any(type(n) is not int or n < 0 for n in flat) or flat != sorted(flat) or len(found) > most:
        raise ValueError(f"no set of steps: {str(runs)[:80]}")
    return found


def _union(parts: list[Ranges]) -> Ranges:
    """Disjoint sets as one."""
    return parts[0] if len(parts) == 1 else Ranges(tuple(sorted(run for part in parts for run in part.runs)))


def _variant(form: dict[str, Any]) -> Variant:
    dims = tuple(form["dims"]) if form["dims"] is not None else None
    return Variant(form["dtype"], tuple(form["shape"]), dims, _ranges(form["steps"]), form["array"])
