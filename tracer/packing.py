"""A packed state: the bytes of all tensors one after the other, as words, and the table that says where each one lies.

Room: tracer. Pure; knows no torch, so that the sealer need not load it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.errors import NameUnknownError

if TYPE_CHECKING:
    from collections.abc import Mapping

WORDS = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


@dataclass(frozen=True)
class Entry:
    """One tensor: `offset` and `nbytes` in bytes; `param` is False for buffers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    param: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: of the tensor's first dimension, or of all of it where it has none."""
        return self.nbytes // self.shape[0] if self.shape and self.shape[0] else self.nbytes


@dataclass(frozen=True)
class PackedLayout:
    """How states are packed: `nbytes` in all, a multiple of `word`, the size of the integers that stand for them.

    Of a keyframe also which options its optimizers have, by their paths: what one has another cannot take.
    """

    word: int
    nbytes: int
    entries: tuple[Entry, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> PackedLayout:
        """Return the layout that a layout record, or the attributes of a `params` array, describes."""
        fields = ("name", "dtype", "nbytes", "offset", "param")
        entries = [Entry(**{f: e[f] for f in fields}, shape=tuple(e["shape"])) for e in header["entries"]]
        options = tuple((path, tuple(names)) for path, names in header.get("options", ()))
        return cls(header["word"], header["nbytes"], tuple(entries), options)

    def table(self) -> dict[str, Any]:
        """Return the layout as JSON; `of` takes it back."""
        entries = [{**asdict(e), "shape": list(e.shape)} for e in self.entries]
        return {"word": self.word, "nbytes": self.nbytes, "entries": entries}

    @property
    def dtype(self) -> np.dtype:
        """Unsigned integers of one word, little-endian."""
        return WORDS[self.word]

    @property
    def width(self) -> int:
        """How many words a state has."""
        return self.nbytes // self.word

    def entry(self, name: str) -> Entry:
        """Return the entry of tensor `name`. Raise NameUnknownError."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        known = ", ".join(e.name for e in self.entries[:8])
        raise NameUnknownError(f"no tensor {name!r}: there are {known}", tensor=name)

    def padding(self, data: bytes | memoryview) -> np.ndarray:
        """Return `data` (a packed state) as words [width]."""
        return np.frombuffer(data, self.dtype)


def word_size(sizes: Mapping[int, int]) -> int:
    """Return the word for a state with `sizes[item size] = bytes`: that of most bytes.

    >>> word_size({4: 4096, 8: 8})
    4
    """
    known = {size: count for size, count in sizes.items() if size in WORDS and count}
    return max(known, key=lambda size: (known[size], size)) if known else 4


def count(shape: tuple[int, ...]) -> int:
    """Return the number of elements of `shape`."""
    return math.prod(shape)
