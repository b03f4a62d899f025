"""The samples of a trace: rows by pool and id, wherever they lie.

Room: tracer. May touch: reads the trace through the chain it is given.
"""

from __future__ import annotations

import math
import threading
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tracer.errors import MissingDataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.chain import Chain
    from tracer.tail import Record


MOST_AT_HAND = 256 << 20
"""A pool of so many bytes may be held in memory, sample by sample as they are asked for: shuffled batches come from all of it."""


class _AtHand:
    """The samples of one pool that were read from sealed segments."""

    def __init__(self, count: int, nbytes: int) -> None:
        """For `count` samples of `nbytes` each."""
        self._rows = np.empty((count, nbytes), np.uint8)
        self._known = np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self._known)

    def rows(self, ids: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The samples `ids`, uint8 [ids, bytes]; `read` gives those that are not there yet."""
        unknown = ids[~self._known[ids]]
        if len(unknown):
            self._rows[unknown] = read(unknown)
            self._known[unknown] = True
        return self._rows[ids]


class Samples:
    """All samples of one trace; ids count up from 0 in each pool."""

    def __init__(self, chain: Chain, *, at_hand: bool = False) -> None:
        """Of the trace whose segments are `chain`; `at_hand`: all that were read stay in memory, up to MOST_AT_HAND a pool."""
        self._chain = chain
        self._keeps = at_hand
        self._tails = list(chain.open.values())
        self._cache: dict[int, np.ndarray] = {}
        self._unread = iter(list(chain.sealed.values()))
        self._runs: dict[str, list[tuple[int, int]]] = {}
        self._arrays: dict[str, str] = {}
        self._at_hand: dict[str, _AtHand | None] = {}
        self._lock = threading.Lock()

    @cached_property
    def _open(self) -> dict[str, list[Record]]:
        """The records of samples that lie in tails, by pool."""
        found: dict[str, list[Record]] = {}
        for segment in self._tails:
            for pool, records in segment.samples.items():
                found.setdefault(pool, []).extend(records)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How many samples each pool has: a later session goes on from there."""
        with self._lock:
            while self._learn():
                pass
        counts = {pool: runs[-1][1] + 1 for pool, runs in self._runs.items() if runs}
        for pool, records in self._open.items():
            counts[pool] = max(counts.get(pool, 0), *(r.header["first"] + r.header["count"] for r in records))
        return counts

    def _learn(self) -> bool:
        """Take in what the next sealed segment says; False where there is none left."""
        segment = next(self._unread, None)
        for pool, facts in segment.samples.items() if segment is not None else ():
            self._runs[pool] = sorted({*self._runs.get(pool, ()), *facts["ids"].runs})
            self._arrays.setdefault(pool, facts["array"])
        return segment is not None

    def rows(self, pool: str, ids: np.ndarray) -> memoryview:
        """The bytes of the samples `ids` (uint32), one after the other. Raise MissingDataError, DamageError."""
        if not len(ids):
            return memoryview(b"")
        if pool not in self._open:
            return memoryview(self._sealed_rows(pool, ids)).cast("B")
        out: np.ndarray | None = None
        missing = np.ones(len(ids), bool)
        for record in self._open.get(pool, ()):
            first, count = record.header["first"], record.header["count"]
            here = missing & (ids >= first) & (ids < first + count)
            if here.any():
                block = self._block(record)
                out = np.empty((len(ids), block.shape[1]), np.uint8) if out is None else out
                out[here] = block[ids[here] - first]
                missing &= ~here
        if missing.any():
            rows = self._sealed_rows(pool, ids[missing])
            out = np.empty((len(ids), rows.shape[1]), np.uint8) if out is None else out
            out[missing] = rows
        assert out is not None
        return memoryview(out).cast("B")

    def _block(self, record: Record) -> np.ndarray:
        key = id(record)
        if key not in self._cache:
            self._cache[key] = np.frombuffer(record.read("data"), np.uint8).reshape(record.header["count"], -1)
        return self._cache[key]

    def _sealed_rows(self, pool: str, ids: np.ndarray) -> np.ndarray:
        with self._lock:
            # Samples are sealed with the step that had them first: mostly the first segments are enough.
            while len(lost := self._lost(pool, ids)) and self._learn():
                pass
            array = self._arrays.get(pool)
        if len(lost) or array is None:
            raise MissingDataError(f"{self._chain.path}: sample {lost[0]} of {pool} was lost when it was recorded")
        return self._of_pool(pool, array, ids)

    def _of_pool(self, pool: str, array: str, ids: np.ndarray) -> np.ndarray:
        def read(some: np.ndarray) -> np.ndarray:
            return self._chain.sample_rows(array, some)

        with self._lock:
            if pool not in self._at_hand:
                spec = self._chain.arrays.get(array).spec
                count, nbytes = spec.shape[0], spec.dtype.itemsize * math.prod(spec.shape[1:])
                fits = self._keeps and count * nbytes <= MOST_AT_HAND
                self._at_hand[pool] = _AtHand(count, nbytes) if fits else None
            at_hand = self._at_hand[pool]
            if at_hand is not None and len(ids) and ids.max() < len(at_hand):
                return at_hand.rows(ids, read)
        return read(ids)

    def _lost(self, pool: str, ids: np.ndarray) -> np.ndarray:
        """Those of `ids` that no segment read until now has."""
        runs = self._runs.get(pool)
        if not runs:
            return ids
        firsts, lasts = np.array(runs, np.int64).T
        place = np.searchsorted(firsts, ids.astype(np.int64), "right") - 1
        return ids[(place < 0) | (ids > lasts[place])]
