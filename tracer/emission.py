"""Which steps are kept, and the counts of each epoch: offered, kept, written, dropped. # S0.1 S0.3

Room: tracer. May touch: the journal it is given.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("rewind")


@dataclass
class EpochCounts:
    """What became of the steps of one pass through the data."""

    epoch: int | None
    first_step: int
    last_step: int
    samples: int = 0
    offered: int = 0
    kept: int = 0
    written: int = 0
    dropped: int = 0


class Emission:
    """Counts steps by epoch and says which are kept: the first batch of an epoch and every N-th after it."""

    def __init__(self, every: int, session: int, write: Callable[[dict[str, Any]], bool]) -> None:
        """`write` takes an epoch record."""
        self._every = every
        self._session = session
        self._write = write
        self._passes = 0
        self._now: EpochCounts | None = None
        self.given: dict[str, Any] = {}

    def epoch(self, number: int | None, step: int) -> None:
        """A pass through the data begins at `step`; `number` is what the program calls it, if it says."""
        self.finish()
        self._now = EpochCounts(self._passes if number is None else number, step, step)
        self._passes += 1

    def offer(self, step: int, size: int | None) -> tuple[int | None, int, bool]:
        """Count a step; return (epoch, index in the epoch from 0, kept)."""
        if self._now is None:
            self._now = EpochCounts(self.given.get("epoch"), step, step)
        now = self._now
        index = now.offered
        now.offered += 1
        now.samples += size or 0
        now.last_step = step
        kept = index == 0 or (index + 1) % self._every == 0
        now.kept += kept
        return now.epoch, index, kept

    def wrote(self, header: dict[str, Any], *, written: bool) -> None:
        """Count what the disk took."""
        now = self._now
        if now is not None and header["kind"] == "step":
            now.written += header["kept"] and written
            now.dropped += header["kept"] and not written

    def finish(self) -> None:
        """The epoch is over: write its counts, and log them."""
        now, self._now = self._now, None
        if now is None or not now.offered:
            return
        self._write({"kind": "epoch", "session": self._session, **asdict(now)})
        _log.info(
            "epoch %s: offered %d, kept %d, wrote %d, dropped %d",
            now.epoch,
            now.offered,
            now.kept,
            now.written,
            now.dropped,
        )

    def progress(self, fields: dict[str, Any]) -> None:
        """Keep what the program says of its progress."""
        self.given.update(fields)
