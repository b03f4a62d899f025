"""What torch.compile had compiled when a step ran: which of its kernels a step runs depends on the shapes that came before.

A keyframe says at which steps something was compiled (`tracer.compiled`). Before a program is put to it, it goes through those that
it has not been through; one that has compiled more than the run had there is started again.
Room: replay. Pure bookkeeping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.past import Past

_MOST = 64


class Compilations:
    """The steps at which a run compiled, and those of them that the program under replay has been through."""

    def __init__(self, past: Past) -> None:
        """Nothing has run yet."""
        self.steps = past.compiled[:_MOST]
        self._been: set[int] = set()

    def afresh(self) -> None:
        """The program is started again."""
        self._been.clear()

    def ran(self, first: int, end: int) -> None:
        """It has run the steps first <= k < end."""
        self._been.update(step for step in self.steps if first <= step < end)

    def missing(self, start: int) -> list[int]:
        """Through which steps it has to go before it is put to state `start`."""
        return [step for step in self.steps if step < start and step not in self._been]

    def beyond(self, start: int) -> bool:
        """Whether it has been through one that the run had not, at state `start`."""
        return any(step >= start for step in self._been)
