"""Sets of step numbers as runs: what a segment holds, in a few numbers however long it is.

Room: tracer. Imports nothing of ours, touches nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Ranges:
    """An ordered set of integers as inclusive runs `((first, last), ...)`."""

    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Ranges:
        """Return the set of `numbers`, given in any order.

        >>> Ranges.of([3, 1, 2, 7])
        Ranges(runs=((1, 3), (7, 7)))
        """
        runs: list[list[int]] = []
        for number in sorted(set(numbers)):
            if runs and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        return cls(tuple((a, b) for a, b in runs))

    @classmethod
    def merged(cls, runs: Iterable[tuple[int, int]]) -> Ranges:
        """Return the union of `runs` (first, last), given in any order.

        >>> Ranges.merged([(5, 6), (1, 3), (4, 4)])
        Ranges(runs=((1, 6),))
        """
        merged: list[tuple[int, int]] = []
        for first, last in sorted(runs):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        place = bisect_right(self.runs, (number, float("inf"))) - 1
        return place >= 0 and number <= self.runs[place][1]

    def run_end(self, number: int) -> int:
        """The last member of the run that `number`, a member, is in.

        >>> Ranges.of([3, 4, 5, 9]).run_end(4)
        5
        """
        return self.runs[bisect_right(self.runs, (number, float("inf"))) - 1][1]

    def upto(self, last: int) -> Ranges:
        """The members that are at most `last`.

        >>> Ranges.of([1, 2, 3, 7]).upto(2)
        Ranges(runs=((1, 2),))
        """
        if not self.runs or self.runs[-1][1] <= last:
            return self
        return Ranges(tuple((a, min(b, last)) for a, b in self.runs if a <= last))

    @cached_property
    def _before(self) -> list[int]:
        """How many members there are before each run."""
        return [0, *accumulate(b - a + 1 for a, b in self.runs)][:-1]

    def place(self, number: int) -> int | None:
        """How many members are less than `number`, which is one; None where it is none.

        >>> Ranges.of([3, 4, 9]).place(9)
        2
        """
        if number not in self:
            return None
        run = bisect_right(self.runs, (number, float("inf"))) - 1
        return self._before[run] + number - self.runs[run][0]

    def members(self, first: int, last: int) -> list[int]:
        """The members from place `first` to place `last` (exclusive).

        >>> Ranges.of([3, 4, 9]).members(1, 5)
        [4, 9]
        """
        found = []
        for (a, b), before in zip(self.runs, self._before, strict=True):
            found += range(max(a, a + first - before), min(b + 1, a + last - before))
        return found

    def __len__(self) -> int:
        return sum(b - a + 1 for a, b in self.runs)

    def __iter__(self) -> Iterator[int]:
        for a, b in self.runs:
            yield from range(a, b + 1)

    def array(self) -> np.ndarray:
        """All members, ascending, as int64 [n]."""
        if not self.runs:
            return np.empty(0, np.int64)
        return np.concatenate([np.arange(a, b + 1, dtype=np.int64) for a, b in self.runs])


class GrowingRanges:
    """A set that numbers are added to, mostly the next one."""

    def __init__(self) -> None:
        """Nothing is in it yet."""
        self._runs: list[tuple[int, int]] = []
        self._now: Ranges | None = Ranges()

    def add(self, number: int) -> None:
        """Put `number` in.

        >>> found = GrowingRanges()
        >>> for number in (3, 4, 9, 4, 5):
        ...     found.add(number)
        >>> found.now()
        Ranges(runs=((3, 5), (9, 9)))
        """
        self._now = None
        if not self._runs or number > self._runs[-1][1] + 1:
            self._runs.append((number, number))
        elif number == self._runs[-1][1] + 1:
            self._runs[-1] = (self._runs[-1][0], number)
        elif number < self._runs[-1][0]:
            self._runs = list(Ranges.merged([*self._runs, (number, number)]).runs)

    def now(self) -> Ranges:
        """What is in it now."""
        if self._now is None:
            self._now = Ranges(tuple(self._runs))
        return self._now
