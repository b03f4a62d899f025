"""Captures as the reader sees them: by key, each a series over the steps.

Room: tracer. May touch: reads the trace through the chain it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tracer import stored, values
from tracer.errors import MissingDataError, NameUnknownError
from tracer.ranges import Ranges

if TYPE_CHECKING:
    import torch

    from tracer.chain import Chain
    from tracer.segments import Segment, Variant


class CaptureSeries:
    """One captured tensor over the steps; `series[k]` owns its memory, MissingDataError where it was not given."""

    def __init__(self, key: str, chain: Chain) -> None:
        """Of the trace whose segments are `chain`."""
        self.key = key
        self._chain = chain

    def _forms(self) -> Iterator[Variant]:
        yield from (form for segment in self._chain for form in segment.captures.get(self.key, ()))

    @property
    def steps(self) -> np.ndarray:
        """The steps at which it was captured, ascending, int64 [T]; superseded ones left out."""
        return self._chain.numbers(self._steps_of).array()

    def _steps_of(self, segment: Segment) -> Ranges:
        return Ranges(tuple(run for form in segment.captures.get(self.key, ()) for run in form.steps.runs))

    @property
    def dtype(self) -> str:
        """The type of the newest, by torch's name."""
        return self._last().dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The largest shape that it came in (the last batch of an epoch may be short)."""
        shapes = [form.shape for form in self._forms()]
        same = [s for s in shapes if len(s) == len(shapes[-1])]
        return tuple(max(sizes) for sizes in zip(*same, strict=True))

    @property
    def dims(self) -> tuple[str, ...] | None:
        """The names of its dimensions, as they were given."""
        return self._last().dims

    def _last(self) -> Variant:
        *_, last = self._forms()
        return last

    def __len__(self) -> int:
        return len(self.steps)

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self._locate(step) is not None

    def __getitem__(self, step: int) -> torch.Tensor:
        segment, form = self._at(step)
        data = segment.capture(self.key, form, np.array([step]))
        return values.bytes_tensor(data.tobytes(), form.dtype, form.shape)

    def _locate(self, step: int) -> tuple[Segment, Variant] | None:
        try:
            segment = self._chain.with_step(step)
        except MissingDataError:
            return None
        return next(((segment, f) for f in segment.captures.get(self.key, ()) if step in f.steps), None)

    def _at(self, step: int) -> tuple[Segment, Variant]:
        found = self._locate(step)
        if found is None:
            raise MissingDataError(f"{self.key!r} was not captured at step {step}", step=step, tensor=self.key)
        return found

    def read(self, steps: Iterable[int] | np.ndarray | None = None) -> np.ndarray:
        """Return the values at `steps` (all where None) as one array [T, *shape].

        bfloat16 comes as float32. Values smaller than `shape` (a short batch) are filled up with NaN, integers with 0.
        Raise MissingDataError at a step without it.
        """
        wanted = self.steps if steps is None else np.asarray(list(steps), np.int64)
        return joined(list(self._read_runs(wanted)) or [np.empty((0, *self.shape), np.float32)])

    def _read_runs(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        place = 0
        while place < len(wanted):
            segment, form = self._at(int(wanted[place]))
            end = place + 1
            while end < len(wanted) and int(wanted[end]) in form.steps and wanted[end] > wanted[end - 1]:
                end += 1
            chosen = wanted[place:end]
            # A step in this form's range belongs to this segment unless a later session superseded it.
            same = [k for k in chosen if self._chain.with_step(int(k)) is segment] if self._chain.cuts else chosen
            chosen = np.asarray(same, np.int64)
            yield stored.array(segment.capture(self.key, form, chosen), form.dtype, form.shape)
            place += len(chosen)

    def __repr__(self) -> str:
        return f"CaptureSeries({self.key!r}, {len(self)} steps, {self.dtype} {list(self.shape)}, dims={self.dims})"


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Return arrays [T, ...] one after the other; smaller ones are filled up with NaN, integers with 0."""
    shape = tuple(np.max([a.shape[1:] for a in parts], axis=0))
    if all(a.shape[1:] == shape for a in parts):
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.concatenate([_fill_up(a, shape) for a in parts])


def _fill_up(values_: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    fill = np.nan if values_.dtype.kind in "fc" else 0
    filled = np.full((values_.shape[0], *shape), fill, values_.dtype)
    filled[tuple(slice(0, n) for n in values_.shape)] = values_
    return filled


def _none() -> Mapping[str, CaptureSeries]:
    return {}


class Captures(Mapping[str, CaptureSeries]):
    """All captured tensors of a trace, by key; what the run itself captured comes before what was added later."""

    def __init__(self, chain: Callable[[], Chain], late: Callable[[], Mapping[str, CaptureSeries]] = _none) -> None:
        """`chain` gives the segments as they are now, `late` the captures that were worked out afterwards."""
        self._chain = chain
        self._late = late

    def _keys(self) -> list[str]:
        # A version of its own, `key@hash`, is there for who asks for it.
        late = (key for key in self._late() if "@" not in key)
        return sorted({key for segment in self._chain() for key in segment.captures} | set(late))

    def _is_own(self, key: object) -> bool:
        return any(key in segment.captures for segment in self._chain())

    def __getitem__(self, key: str) -> CaptureSeries:
        if self._is_own(key):
            return CaptureSeries(key, self._chain())
        late = self._late()
        if key not in late:
            known = ", ".join(self._keys()) or "none"
            raise NameUnknownError(f"no capture {key!r}; there are: {known}", tensor=key)
        return late[key]

    def __contains__(self, key: object) -> bool:
        return self._is_own(key) or key in self._late()

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())
