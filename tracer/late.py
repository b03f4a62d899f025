"""Captures that were worked out afterwards: the arrays of hindsight functions, read as if the run had captured them. # B3

hindsight/<name>-<hash>.zarr has `step` [T] and each array [T, ...]; the .json beside it, written last, says what they
are. A key is the newest function's that gave it, where the run itself captured nothing of that name; each version by
itself is `key@<hash>`.
Room: tracer. May touch: hindsight/ of the trace it is given.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer.captures import CaptureSeries
from tracer.errors import DamageError, MissingDataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class LateSeries(CaptureSeries):
    """One array of a hindsight function over the steps that it was asked about."""

    def __init__(self, key: str, path: Path, name: str, form: dict[str, Any], source: str) -> None:
        """Array `name` of the Zarr group at `path`; `source` is what `metrics.source` says of the function."""
        self.key = key
        self.source = source
        self._path, self._name, self._form = path, name, form

    @cached_property
    def _group(self) -> Any:
        import zarr  # noqa: PLC0415  heavy, and few ask for it

        try:
            return zarr.open_group(str(self._path), mode="r")
        except (OSError, KeyError, ValueError) as error:
            raise DamageError(
                f"{self._path} cannot be read: {error}; ask the function again", path=self._path
            ) from None

    def _array(self, name: str) -> Any:
        try:
            return self._group[name]
        except KeyError:
            raise DamageError(f"{self._path} has no {name!r}: ask the function again", path=self._path) from None

    @cached_property
    def steps(self) -> np.ndarray:  # type: ignore[override]
        """As CaptureSeries."""
        return np.asarray(self._array("step")[:], np.int64)

    @property
    def dtype(self) -> str:
        """As CaptureSeries."""
        return str(self._form["dtype"])

    @property
    def shape(self) -> tuple[int, ...]:
        """As CaptureSeries."""
        return tuple(self._form["shape"])

    @property
    def dims(self) -> tuple[str, ...] | None:
        """Not known: a function gives plain arrays."""
        return None

    def _places(self, steps: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.steps, steps)
        there = places < len(self.steps)
        there[there] = self.steps[places[there]] == steps[there]
        if not there.all():
            k = int(steps[~there][0])
            raise MissingDataError(f"{self.key!r} was not worked out for step {k}", step=k, tensor=self.key)
        return places

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and bool((self.steps == step).any())

    def __getitem__(self, step: int) -> torch.Tensor:
        (place,) = self._places(np.array([step]))
        return torch.from_numpy(np.array(self._array(self._name)[int(place)]))

    def read(self, steps: Iterable[int] | np.ndarray | None = None) -> np.ndarray:
        """As CaptureSeries."""
        array = self._array(self._name)
        if steps is None:
            return np.asarray(array[:])
        return np.asarray(array.oindex[self._places(np.asarray(list(steps), np.int64))])


class Late:
    """All late captures of one trace, by key; looked for anew when the folder has changed."""

    def __init__(self, trace: Path) -> None:
        """Of the trace at `trace`."""
        self._folder = trace / "hindsight"
        self._seen: int | None = None
        self._found: dict[str, LateSeries] = {}

    def series(self) -> dict[str, LateSeries]:
        """{key: series}."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return {}
        if changed != self._seen:
            self._found = dict(self._read())
            self._seen = changed
        return self._found

    def _read(self) -> Iterable[tuple[str, LateSeries]]:
        """Oldest first, so that of a key the newest stays."""
        for time, path, facts in sorted(self._facts(), key=lambda found: found[:2]):
            group = path.with_suffix(".zarr")
            for name, form in facts.get("arrays", {}).items() if time and group.is_dir() else ():
                source = f"hindsight:{facts['hash']}"
                yield name, LateSeries(name, group, name, form, source)
                named = f"{name}@{facts['hash']}"
                yield named, LateSeries(named, group, name, form, source)

    def _facts(self) -> Iterable[tuple[float, Path, dict[str, Any]]]:
        for path in self._folder.glob("*.json"):
            try:
                facts = json.loads(path.read_bytes())
                yield float(facts["time"]), path, {**facts, "hash": str(facts["hash"])}
            except (OSError, ValueError, KeyError, TypeError):
                continue  # half written, or none of ours: its metrics are in SQL all the same
