"""The step boundary: decides, from what the hooks see, where one step of a training loop ends and the next begins.

A step is one batch of the DataLoader that drives the loop; where none does, one step of the (first) optimizer. The same decisions
are made while recording and while replaying, so both see the same steps.

A fetch opens a step on trial: it is one only if a backward pass or an optimizer's step follows before the next fetch of
the same iterator (peeking into a loader, or validating without `no_grad`, is not a step).
Room: tracer. Holds no data of the program, only references that do not keep anything alive.
"""

from __future__ import annotations

import dis
import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from tracer.frames import is_followed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    import torch

_UNWINDING = ("CALL", "BINARY", "LOAD", "RAISE", "RERAISE", "UNARY", "COMPARE", "CHECK", "FORMAT")
"""Instructions that raise; one that stores may have put another in the iterator's place."""
_PATIENCE = 8


class Steps(Protocol):
    """What a recorder, or an engine, does at the points of a step."""

    def fetch(self, native: Callable[[], Any], *, extra: bool, same_iterator: bool) -> Any:
        """Return the batch; raise StopIteration where the loop is over."""

    def begin(self, batch: Any, *, left: bool, iterator: Any) -> None:
        """A step begins on trial, with `batch`; `left` says that the loop was left since the last one."""

    def discard(self) -> None:
        """It was none."""

    def end(self, *, mode: str, interrupted: bool = False) -> None:
        """The step is over; `interrupted` says that an exception ended it."""

    def forward(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None: ...

    def backward(self, losses: tuple[Any, ...]) -> None: ...

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None: ...

    def optimizer_post(self, optimizer: torch.optim.Optimizer) -> None: ...


class Boundary:
    """Turns the hooks' events into steps."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._driver: weakref.ref[Any] | None = None
        self._last_driver: int | None = None
        self._driver_fetches = 0
        self._extra_fetches: dict[int, int] = {}
        self._loop: tuple[CodeType, int] | None = None
        self._leader: weakref.ref[torch.optim.Optimizer] | None = None
        self._since_leader = 0
        self._others = 0
        self.in_optimizer = False
        """Whether an optimizer is stepping (a closure may run backward passes inside it)."""
        self.in_callback = False
        self.fetching: Any = None
        self.open = False
        self.trained = False
        self.left = False

    # -- DataLoader ---------------------------------------------------------------------------------------------------

    def fetch(self, iterator: Any, native: Callable[[], Any]) -> Any:
        """A DataLoader iterator is asked for its next batch; for as long as that takes it is `fetching`."""
        outer, self.fetching = self.fetching, iterator
        try:
            return self._fetch(iterator, native)
        finally:
            self.fetching = outer

    def _fetch(self, iterator: Any, native: Callable[[], Any]) -> Any:
        if self.open:
            if self._is_driver(iterator):
                self.close()
            elif self._driver is not None and self._driver() is not None and not self._takes_over(iterator):
                return self._steps.fetch(native, extra=True, same_iterator=False)
            else:
                self.close()
        same = id(iterator) == self._last_driver
        self._last_driver = id(iterator)
        try:
            batch = self._steps.fetch(native, extra=False, same_iterator=same)
        except StopIteration:
            self._driver, self._last_driver, self.left = None, None, True
            raise
        self._begin(iterator, batch, left=self.left or not same)
        return batch

    def _begin(self, iterator: Any, batch: Any, *, left: bool) -> None:
        self._driver_fetches = self._driver_fetches + 1 if self._is_driver(iterator) else 1
        if not self._is_driver(iterator):
            self._driver = weakref.ref(iterator, self._iterator_died)
        self._extra_fetches.clear()
        self._loop = _loop_frame()
        self.open, self.trained, self.left = True, False, False
        self._steps.begin(batch, left=left, iterator=iterator)

    def _is_driver(self, iterator: Any) -> bool:
        return self._driver is not None and self._driver() is iterator

    def _takes_over(self, iterator: Any) -> bool:
        """Whether a second iterator is the real driver: it is fetched again and again, the first was only looked into."""
        count = self._extra_fetches[id(iterator)] = self._extra_fetches.get(id(iterator), 0) + 1
        return self._driver_fetches == 1 and count >= 2 and self.trained

    def _iterator_died(self, ref: weakref.ref[Any]) -> None:
        if ref is self._driver:
            self._driver = None
            self._last_driver = None
            self.in_callback = True
            try:
                if self.open:
                    self.close(interrupted=self._unwinding())
            finally:
                self.in_callback = False
            self.left = True

    def _unwinding(self) -> bool:
        """Whether an exception is passing through the loop's frame: the iterator then dies while another instruction runs."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and not is_followed(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None or self._loop != (frame.f_code, id(frame)):
            return False
        current = [i.opname for i in dis.get_instructions(frame.f_code) if i.offset <= frame.f_lasti]
        return bool(current) and _last_real(current).startswith(_UNWINDING)

    def close(self, *, interrupted: bool = False) -> None:
        """End the step that is open, or discard it if nothing was trained in it."""
        self.open = False
        if self.trained:
            self._steps.end(mode="loader", interrupted=interrupted)
        else:
            self._steps.discard()

    # -- the rest -----------------------------------------------------------------------------------------------------

    def forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        self._steps.forward(module, args)

    def backward(self, losses: tuple[Any, ...]) -> None:
        """A backward pass has run."""
        self.trained = True
        self._steps.backward(losses)

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""
        self.in_optimizer = True
        self._steps.optimizer_pre(optimizer)

    def optimizer_post(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""
        self.in_optimizer = False
        self._steps.optimizer_post(optimizer)
        if self.open:
            self.trained = True
        elif self._leads(optimizer):
            self._steps.end(mode="optimizer")
            self.left = False

    def _leads(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this is the optimizer whose steps are counted: the first that stepped, until it steps no more."""
        leader = self._leader() if self._leader is not None else None
        if leader is optimizer:
            self._others = max(self._others, self._since_leader)
            self._since_leader = 0
            return True
        self._since_leader += 1
        patience = 2 * self._others + _PATIENCE if self._others else 1
        if leader is None or self._since_leader > patience:
            self._leader = weakref.ref(optimizer)
            self._since_leader = self._others = 0
            return True
        return False

    def driver(self) -> Any:
        """Return the DataLoader's iterator that drives the loop, or None."""
        return None if self._driver is None else self._driver()

    def leader(self) -> torch.optim.Optimizer | None:
        """Return the optimizer whose steps are counted where no DataLoader drives the loop."""
        return None if self._leader is None else self._leader()

    def follow(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Count the steps of `optimizer` from now on: the past that is put back had it as its leader."""
        self._leader = None if optimizer is None else weakref.ref(optimizer)
        self._since_leader = self._others = 0


def _last_real(names: list[str]) -> str:
    return next((n for n in reversed(names) if n not in ("CACHE", "NOP", "EXTENDED_ARG", "RESUME")), "")


def _loop_frame() -> tuple[CodeType, int] | None:
    frame: FrameType | None = sys._getframe()
    while frame is not None and not is_followed(frame.f_code.co_filename):
        frame = frame.f_back
    return None if frame is None else (frame.f_code, id(frame))
