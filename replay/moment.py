"""A step as a hindsight function sees it: from what is stored, or inside the program that re-executes it. # B3

Room: replay. May touch: `StoredMoment` reads a trace; `LiveMoment` the program under replay, and puts back what it
changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tracer.errors import MissingDataError, NameUnknownError

if TYPE_CHECKING:
    from tracer.stored import State
    from tracer.trace import Trace


class Moment(Protocol):
    """Step `step` of a run: what it started from, what it did, what it left.

    `state` and `next_state` map names of `state_dict()` to tensors; `batch` is what the loop got; `captures` and
    `grads` map names to tensors of this step; `loss` is its loss. `model` is the program's own module, in the state,
    mode and randomness that the step started from; where there are several, `models` has them by the name of their
    variable. Forward and backward passes, and random numbers, may be used freely: the program is put back before it
    goes on.
    """

    step: int
    loss: float | None
    batch: Any
    state: Mapping[str, torch.Tensor]
    next_state: Mapping[str, torch.Tensor]
    captures: Mapping[str, torch.Tensor]
    grads: Mapping[str, torch.Tensor]
    model: torch.nn.Module
    models: Mapping[str, torch.nn.Module]


class NotStoredError(BaseException):
    """A stored moment was asked for what only re-execution has. No Exception: a metric's own `except` must not catch
    it."""


class StoredMoment:
    """A step answered from stored tensors alone; raises NotStoredError where that is not possible."""

    def __init__(self, trace: Trace, k: int) -> None:
        """Step `k` of `trace`."""
        self.step = k
        self._trace = trace
        self.loss: float | None = trace.record(k)["loss"]
        self.captures = _StoredCaptures(trace, k)

    @cached_property
    def batch(self) -> Any:
        """The batch, as the loop got it."""
        return self._stored(lambda: self._trace.stored_batch(self.step))

    @cached_property
    def state(self) -> Mapping[str, torch.Tensor]:
        """The tensors that the step started from."""
        return self._state(self.step)

    @cached_property
    def next_state(self) -> Mapping[str, torch.Tensor]:
        """The tensors that the step left."""
        return self._state(self.step + 1)

    @cached_property
    def grads(self) -> Mapping[str, torch.Tensor]:
        """The gradients that the step used."""
        return self._stored(lambda: self._trace.grads(self.step))

    @property
    def model(self) -> torch.nn.Module:
        """Never stored."""
        raise NotStoredError

    models = model

    def _state(self, k: int) -> State:
        if not self._trace.has_state(k):
            raise NotStoredError
        return self._trace.state(k)

    def _stored(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except MissingDataError:
            raise NotStoredError from None


class _StoredCaptures(Mapping[str, torch.Tensor]):
    """The captures of one step; what was not recorded may come from re-execution."""

    def __init__(self, trace: Trace, k: int) -> None:
        self._trace = trace
        self._k = k

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self:
            raise NotStoredError
        return self._trace.captures[key][self._k]

    def __contains__(self, key: object) -> bool:
        return key in self._trace.captures and self._k in self._trace.captures[str(key)]

    def __iter__(self) -> Any:
        keys = [key for key in self._trace.captures if key in self]
        if not keys:
            raise NotStoredError
        return iter(keys)

    def __len__(self) -> int:
        return len(list(iter(self)))


class LiveMoment:
    """A step that the program has just re-executed."""

    def __init__(
        self,
        numbers: tuple[int, float | None],
        batch: Callable[[], Any],
        states: tuple[Callable[[], State], Callable[[], State]],
        given: tuple[dict[str, torch.Tensor], Callable[[], dict[str, torch.Tensor]]],
        enter: Callable[[], Mapping[str, torch.nn.Module]],
    ) -> None:
        """`numbers`: the step and its loss; `states` give state k and k+1, `given` are captures and what gives gradients.

        `enter` puts the modules into state k.
        """
        self.step, self.loss = numbers
        self.captures, self._grads = given
        self._batch, self._states, self._enter = batch, states, enter

    @cached_property
    def batch(self) -> Any:
        """The batch, as the loop got it."""
        return self._batch()

    @cached_property
    def state(self) -> State:
        """The tensors that the step started from."""
        return self._states[0]()

    @cached_property
    def next_state(self) -> State:
        """The tensors that the step left."""
        return self._states[1]()

    @cached_property
    def grads(self) -> dict[str, torch.Tensor]:
        """The gradients that the step used. Raise ReplayError where the loop has overwritten them."""
        return self._grads()

    @cached_property
    def models(self) -> Mapping[str, torch.nn.Module]:
        """The program's modules by the name of their variable, as they were when the step started."""
        dict(self.next_state)  # read first, all of it: the modules are about to go back
        return self._enter()

    @property
    def model(self) -> torch.nn.Module:
        """The program's module. Raise NameUnknownError where it has none or several."""
        found = self.models
        if len(found) == 1:
            return next(iter(found.values()))
        names = ", ".join(found) or "none"
        raise NameUnknownError(f"the program has no single module: take step.models[...] of {names}", step=self.step)
