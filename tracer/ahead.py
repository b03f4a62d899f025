"""Loaders that are asked one batch ahead: what a step is trained on was then fetched before what was fetched last.

accelerate's loaders do so (and with them Hugging Face's Trainer), to know which batch is the last of an epoch.
Room: tracer. Pure, but for the frames it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

_ASKED_AHEAD = ("DataLoaderShard.__iter__", "DataLoaderDispatcher.__iter__")
"""The generators that do so, by name."""
_FAR = 12


def is_asked_ahead(site: list[list[Any]] | None) -> bool:
    """Whether the place of a fetch (see `frames.site_of`) is in such a loader."""
    return bool(site) and str(site[-1][1]).partition("#")[0] in _ASKED_AHEAD


class Ahead:
    """The sizes of the batches that were fetched and not trained on."""

    def __init__(self) -> None:
        self._on = False
        self._waiting: list[int | None] = []

    def fetched(self, size: int | None, *, left: bool, frame: FrameType | None) -> int | None:
        """A batch of `size` was fetched from `frame`, `left`: of a new iterator; return how many samples are trained on next."""
        if left:
            self._on, self._waiting = _is_in_one(frame), []
        if not self._on:
            return size
        self._waiting.append(size)
        return _sum(self._waiting[:-1])

    def rest(self) -> int | None:
        """The loader was at its end: return how many samples are trained on next."""
        return _sum(self._waiting) if self._on else None

    def trained(self, *, by_loader: bool) -> None:
        """A step is over: it was trained on all but the batch that was fetched last, or on the rest."""
        self._waiting = self._waiting[-1:] if by_loader else []


def _is_in_one(frame: FrameType | None) -> bool:
    for _ in range(_FAR):
        if frame is None:
            return False
        if frame.f_code.co_qualname in _ASKED_AHEAD:
            return True
        frame = frame.f_back
    return False


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None
