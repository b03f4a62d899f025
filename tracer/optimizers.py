"""The optimizers that were seen, in order, without keeping them alive. Room: tracer. Pure."""

from __future__ import annotations

import gc
import weakref

import torch


class Optimizers:
    """Optimizers in the order in which they were met.

    One that a variable of the program once led to counts only while one does: else it is waiting to be freed. One that no
    variable ever led to (it lies inside a library's object) counts as long as it exists.
    """

    def __init__(self) -> None:
        self._refs: list[weakref.ref[torch.optim.Optimizer]] = []
        self._seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def living(self) -> list[torch.optim.Optimizer]:
        """Those that still exist."""
        return [o for ref in self._refs if (o := ref()) is not None]

    def see(self, found: list[torch.optim.Optimizer]) -> None:
        """Variables of the program lead to these."""
        for optimizer in found:
            self.add(optimizer)
            self._seen.add(optimizer)

    def hidden(self) -> list[torch.optim.Optimizer]:
        """Those that no variable ever led to."""
        return [o for o in self.living() if o not in self._seen]

    def __contains__(self, optimizer: object) -> bool:
        for ref in self._refs:  # noqa: SIM110  at every step
            if ref() is optimizer:
                return True
        return False

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember `optimizer`."""
        if optimizer not in self:
            self._refs = [ref for ref in self._refs if ref() is not None]
            self._refs.append(weakref.ref(optimizer))

    def index(self, optimizer: torch.optim.Optimizer) -> int:
        """Its place among those that still exist."""
        return 0 if len(self._refs) == 1 else self.living().index(optimizer)


def all_living() -> list[torch.optim.Optimizer]:
    """Every optimizer of the process, reachable from the program's frames or not; slow."""
    return [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
