"""Captures that were worked out afterwards: the arrays of hindsight functions, read as if the run had captured them. # B3

hindsight/<name>-<hash>.zarr has `step` [T] and each array [T, ...]; the .json beside it, written after, says what they are
and has the sums of their files. A key is the newest function's that gave it, where the run itself captured nothing of that
name; each version by itself is `key@<hash>`.
Room: tracer. May touch: hindsight/ of the trace it is given.
"""

from __future__ import annotations

import contextlib
import json
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from tracer import addenda
from tracer.captures import CaptureSeries, joined
from tracer.errors import DamageError, MissingDataError
from tracer.ranges import Ranges
from tracer.segments import proven

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tracer.chain import Chain


class LateSeries(CaptureSeries):
    """One array of a hindsight function over the steps that it was asked about."""

    def __init__(
        self,
        key: str,
        place: tuple[Path, str],
        form: dict[str, Any],
        origin: tuple[str, float],
        *,
        older: LateSeries | None = None,
        end: int | None = None,
        told: dict[str, str] | None = None,
    ) -> None:
        """`place`: a Zarr group and the array's name there; `origin`: what `metrics.source` says of the function, and
        when it was asked.

        `older`: what the same function gave before; it has the steps that were not asked about again. `end`: a later
        session has made the steps from this one on anew, so what was said of them is not said of these. `told`: the sums of
        the group's files.
        """
        self.key = key
        self.source, self.time = origin
        self._path, self._name = place
        self._form, self._older, self._end = form, older, end
        self._told = told
        self._proven: set[str] = set()

    @cached_property
    def _group(self) -> Any:
        import zarr  # noqa: PLC0415  heavy, and few ask for it

        try:
            return zarr.open_group(str(self._path), mode="r")
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DamageError(
                f"{self._path} cannot be read: {error}; ask the function again", path=self._path
            ) from None

    def _array(self, name: str) -> Any:
        if name not in self._proven:
            for line in addenda.file_damages(self._path, self._told, name):
                raise DamageError(line, path=self._path)
            self._proven.add(name)
        try:
            return self._group[name]
        except (KeyError, ValueError):
            raise DamageError(f"{self._path} has no {name!r}: ask the function again", path=self._path) from None

    @cached_property
    def _asked(self) -> np.ndarray:
        told = self._form.get("at")
        return np.asarray(self._array("step")[:], np.int64) if told is None else Ranges(tuple(map(tuple, told))).array()

    @cached_property
    def _own(self) -> np.ndarray:
        return self._asked if self._end is None else self._asked[self._asked < self._end]

    @cached_property
    def steps(self) -> np.ndarray:  # type: ignore[override]
        """As CaptureSeries."""
        return self._own if self._older is None else np.union1d(self._own, self._older.steps)

    @property
    def dtype(self) -> str:
        """As CaptureSeries."""
        return str(self._form["dtype"])

    @property
    def shape(self) -> tuple[int, ...]:
        """As CaptureSeries."""
        own = tuple(self._form["shape"])
        other = own if self._older is None else self._older.shape
        return tuple(map(max, own, other)) if len(own) == len(other) else own

    @property
    def dims(self) -> tuple[str, ...] | None:
        """Not known: a function gives plain arrays."""
        return None

    def _with(self, step: int) -> LateSeries:
        """The newest that has this step."""
        series: LateSeries | None = self
        while series is not None:
            if step in series._places:
                return series
            series = series._older
        raise MissingDataError(f"{self.key!r} was not worked out for step {step}", step=step, tensor=self.key)

    @cached_property
    def _places(self) -> dict[int, int]:
        own = set(self._own.tolist())
        return {step: place for place, step in enumerate(self._asked.tolist()) if step in own}

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and bool((self.steps == step).any())

    def __getitem__(self, step: int) -> torch.Tensor:
        found = self._with(step)
        return torch.from_numpy(np.array(found._array(found._name)[found._places[step]]))

    def read(self, steps: Iterable[int] | np.ndarray | None = None) -> np.ndarray:
        """As CaptureSeries."""
        wanted = [int(k) for k in (self.steps if steps is None else steps)]
        runs = [(series, list(part)) for series, part in groupby(wanted, key=self._with)]
        return joined([series._rows(part) for series, part in runs] or [self._rows([])])

    def rows(self, key: str) -> pa.Table:
        """What SQL says of the steps that were asked last, under the name `key`."""
        size = int(np.prod(self._form["shape"], dtype=np.int64)) * np.dtype(self.dtype).itemsize
        facts = (key, self.dtype, list(self._form["shape"]), size, self.source, self.time)
        return pa.table([self._own, *([value] * len(self._own) for value in facts)], schema=addenda.ARRAYS)

    def _rows(self, steps: list[int]) -> np.ndarray:
        array = self._array(self._name)
        if steps == self._asked.tolist():
            return np.asarray(array[:])
        return np.asarray(array.oindex[np.array([self._places[k] for k in steps], np.int64)])


class Late:
    """All late captures of one trace, by key; looked for anew when the folder has changed, or a session has begun."""

    def __init__(self, trace: Path, chain: Callable[[], Chain] | None = None) -> None:
        """Of the trace at `trace`; `chain` says which steps a later session made anew, without it all count."""
        self._folder = trace / "hindsight"
        self._chain = chain
        self._seen: tuple[int, int] | None = None
        self._found: dict[str, LateSeries] = {}

    def series(self) -> dict[str, LateSeries]:
        """{key: series}."""
        changed = addenda.arrays_changed(self._folder.parent)
        if changed is None:
            return {}
        now = (changed, len(self._chain().manifest.sessions) if self._chain is not None else 0)
        if now != self._seen:
            self._found = dict(self._read())
            self._seen = now
        return self._found

    def _read(self) -> Iterable[tuple[str, LateSeries]]:
        """Oldest first, so that of a key the newest stays."""
        before: dict[str, LateSeries] = {}
        for time, path, facts in sorted(self._facts(), key=lambda found: found[:2]):
            group = path.with_suffix(".zarr")
            end = None if self._chain is None else self._chain().superseded_from(time)
            told = facts.get("files")
            for name, form in facts.get("arrays", {}).items() if time and (group.is_dir() or told) else ():
                origin, named = (f"hindsight:{facts['hash']}", time), f"{name}@{facts['hash']}"
                older = before.get(named)
                yield name, LateSeries(name, (group, name), form, origin, older=older, end=end, told=told)
                before[named] = LateSeries(named, (group, name), form, origin, older=older, end=end, told=told)
                yield named, before[named]

    def _facts(self) -> Iterable[tuple[float, Path, dict[str, Any]]]:
        for path in self._folder.glob("*.json"):
            try:
                facts = json.loads(data := path.read_bytes())
                if not proven(data, facts):
                    raise ValueError(path)
                yield float(facts["time"]), path, {**facts, "hash": str(facts["hash"])}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # damaged, which is named; half written, or none of ours: its metrics are in SQL all the same


def table(trace: Path) -> pa.Table:
    """One row for each late array and step, as often as it was asked: step, key, dtype, shape, bytes, source, time."""
    found = [addenda.ARRAYS.empty_table()]
    for key, series in Late(trace)._read():
        name, _, version = key.rpartition("@")
        if name and series.source == f"hindsight:{version}":
            with contextlib.suppress(DamageError):  # it is left out, as its metrics are
                found.append(series.rows(name))
    return pa.concat_tables(found)
