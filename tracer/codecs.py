"""Consecutive states as small numbers: what `params` holds instead of the words themselves. Lossless for any bits.

A state is words: unsigned integers that are the bits of its floats. Each row is stored in one of three forms, said by
`params_from[row] = (a, b)`, two rows or -1:

    order(w)  = ~w if the top bit of w is set, else w with its top bit set      floats in their order, as integers
    stored[i] = state[i]                                                         a = b = -1
    stored[i] = zigzag(order(state[i]) - order(state[a]))                        b = -1
    stored[i] = zigzag(order(state[i]) - floor((order(state[a]) + order(state[b])) / 2))

modulo 2^bits; zigzag(d) = (d << 1) ^ (d >> bits-1), undone by (z >> 1) ^ -(z & 1). Every eighth row stands for
itself, those between are predicted from both sides, so any state is at most five rows away.
Room: tracer. Pure NumPy.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BLOCK = 8
"""Every so many rows one stands for itself."""
ITSELF = -1
_FEW = 4
"""So many rows are decoded one by one, where they lie; more are gathered first."""


def order(words: np.ndarray) -> np.ndarray:
    """Map the bits of floats to unsigned integers in the order of the floats; a bijection of any bits.

    >>> order(np.array([-1.0, -0.0, 0.0, 1.0], np.float32).view(np.uint32)).tolist() == sorted(
    ...     order(np.array([1.0, 0.0, -0.0, -1.0], np.float32).view(np.uint32)).tolist())
    True
    """
    bits, signed = _kinds(words.dtype)
    mask = (words.view(signed) >> signed.type(bits - 1)).view(words.dtype)
    mask |= words.dtype.type(1 << (bits - 1))
    return np.bitwise_xor(words, mask, out=mask)


def unorder(ordered: np.ndarray) -> np.ndarray:
    """Undo `order`."""
    bits, signed = _kinds(ordered.dtype)
    mask = (ordered.view(signed) >> signed.type(bits - 1)).view(ordered.dtype)
    np.invert(mask, out=mask)
    mask |= ordered.dtype.type(1 << (bits - 1))
    return np.bitwise_xor(ordered, mask, out=mask)


def zigzag(difference: np.ndarray) -> np.ndarray:
    """Map differences modulo 2^bits (as unsigned integers) to small numbers: 0, -1, 1, -2 become 0, 1, 2, 3.

    Undone by `(z >> 1) ^ -(z & 1)`.
    """
    bits, signed = _kinds(difference.dtype)
    sign = (difference.view(signed) >> signed.type(bits - 1)).view(difference.dtype)
    return np.bitwise_xor(difference << difference.dtype.type(1), sign, out=sign)


def middle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """floor((a + b) / 2) without overflow."""
    half = np.bitwise_xor(a, b)
    half >>= half.dtype.type(1)
    half += a & b
    return half


def _kinds(dtype: np.dtype) -> tuple[int, np.dtype]:
    return 8 * dtype.itemsize, np.dtype(f"i{dtype.itemsize}")


@lru_cache(maxsize=64)
def plan(count: int) -> tuple[tuple[int, int], ...]:
    """Return for each of `count` rows the two that it is predicted from, ITSELF for none.

    >>> plan(4)
    ((-1, -1), (0, 3), (1, 3), (0, -1))
    """
    refs: list[tuple[int, int]] = [(ITSELF, ITSELF)] * count
    anchors = [*range(0, count, BLOCK)]
    if count and anchors[-1] != count - 1:
        # The last block is short or ends with the segment: its last row takes the place of the next block's first.
        refs[count - 1] = (anchors[-1], ITSELF)
        anchors.append(count - 1)
    for first, last in pairwise(anchors):
        _between(refs, first, last)
    return tuple(refs)


def _between(refs: list[tuple[int, int]], first: int, last: int) -> None:
    if last - first > 1:
        half = (first + last) // 2
        refs[half] = (first, last)
        _between(refs, first, half)
        _between(refs, half, last)


def needed(refs: Mapping[int, Sequence[int]], wanted: Iterable[int]) -> dict[int, int]:
    """The rows that `wanted` are decoded from, and themselves: {row: depth}; a row needs only rows of less depth.

    `refs` = {row: (a, b)}.
    """
    depths: dict[int, int] = {ITSELF: -1}

    def depth(row: int) -> int:
        found = depths.get(row)
        if found is None:
            a, b = refs[row]
            found = depths[row] = 1 + max(depth(a), depth(b))
        return found

    for row in wanted:
        depth(row)
    del depths[ITSELF]
    return depths


def encode(ordered: np.ndarray, a: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """Return a row as it is stored where it is predicted from `a` and, unless None, `b`; all three in their order."""
    return zigzag(ordered - (a if b is None else middle(a, b)))


class Decoder:
    """Decodes some rows, out of those that they are predicted from; what is worked out of `refs` is worked out once."""

    def __init__(self, refs: Mapping[int, Sequence[int]], wanted: Sequence[int]) -> None:
        """`refs` = {row: (a, b)}; `wanted` are rows."""
        depths = needed(refs, wanted)
        self.rows = list(depths)
        """The rows that must be read, in the order in which `decode` wants them."""
        places = {row: i for i, row in enumerate(self.rows)}
        places[ITSELF] = ITSELF
        self.wanted = [places[row] for row in wanted]
        levels: dict[tuple[int, bool], list[tuple[int, int, int]]] = {}
        for row, depth in depths.items():
            a, b = refs[row]
            levels.setdefault((depth, b == ITSELF), []).append((places[row], places[a], places[b]))
        self._levels = [(single, found) for (_, single), found in sorted(levels.items())]

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Return the wanted rows of `stored` [rows, words], which is used up: words as they were, [wanted, words]."""
        for single, found in self._levels:
            if len(found) < _FEW:
                for here, a, b in found:
                    _restore(stored[here], *(stored[p] if p != ITSELF else None for p in (a, b)))
                continue
            here, a, b = np.array(found).T
            values = stored[here]
            _restore(values, stored[a] if a[0] != ITSELF else None, None if single else stored[b])
            stored[here] = values
        return unorder(stored[self.wanted])


def _restore(row: np.ndarray, a: np.ndarray | None, b: np.ndarray | None) -> None:
    """Turn `row` as it is stored into its words in their order, in place; `a` and `b` are in their order."""
    if a is None:
        row[...] = order(row)
        return
    one = row.dtype.type(1)
    scratch = row & one
    np.negative(scratch, out=scratch)
    row >>= one
    row ^= scratch
    if b is None:
        row += a
        return
    # floor((a + b) / 2) without overflow
    np.bitwise_xor(a, b, out=scratch)
    scratch >>= one
    row += scratch
    np.bitwise_and(a, b, out=scratch)
    row += scratch
