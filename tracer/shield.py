"""Between the program and the recorder: what goes wrong in the recorder never reaches the program. # S0.4

The first failure is logged with its cause and ends the recording; training goes on as if there had been none.
Room: tracer. May touch: nothing.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

import torch

from tracer.values import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.steps import StepRecorder

_log = logging.getLogger("rewind")


class Shield:
    """Passes events (see `hooks.Events`) and what user code gives (see `active.Listener`) on to a recorder."""

    def __init__(self, steps: StepRecorder) -> None:
        """Pass on to `steps` and its boundary."""
        self._steps = steps
        self._boundary = steps.boundary
        self.failure: str | None = None
        self._left_out: set[str] = set()

    def _leave_out(self, what: str, why: object) -> None:
        """One thing that user code gave cannot be kept: that is said once, and all else goes on."""
        if what not in self._left_out:
            self._left_out.add(what)
            _log.warning("%s is left out: %s", what, why)

    def fail(self, error: Exception) -> None:
        """Something is wrong with the recorder: it ends, the program goes on."""
        if self.failure is None:
            self.failure = f"{type(error).__name__}: {error}"
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.name}, line {where.lineno}"
            shown = _log.isEnabledFor(logging.DEBUG)
            _log.error("recording stopped, training goes on: %s (%s)", self.failure, place, exc_info=shown)

    def fetch(self, iterator: Any, native: Callable[[], Any]) -> Any:
        """The batch, fetched exactly once whatever the recorder does; what the fetch itself raises passes through."""
        if self.failure is not None:
            return native()
        outcome: list[Any] = []
        raised: list[BaseException] = []

        def once() -> Any:
            try:
                outcome.append(native())
            except BaseException as error:
                raised.append(error)
                raise
            return outcome[0]

        try:
            return self._boundary.fetch(iterator, once)
        except Exception as error:
            if raised:
                raise
            self.fail(error)
        return outcome[0] if outcome else native()

    # The five that come at every step say it all themselves: each call between would be one more in each.

    def forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        if self.failure is None:
            try:
                self._steps.forward(module, args)
            except Exception as error:  # noqa: BLE001  as above
                self.fail(error)

    def entered(self, arguments: tuple[Any, ...]) -> None:
        """Compiled code is about to run: a model, or what calls one."""
        if self.failure is None:
            try:
                self._steps.forward(None, arguments)
            except Exception as error:  # noqa: BLE001  as above
                self.fail(error)

    def backward(self, losses: tuple[Any, ...]) -> None:
        """A backward pass has run."""
        if self.failure is None:
            try:
                self._boundary.backward(losses)
            except Exception as error:  # noqa: BLE001  as above
                self.fail(error)

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""
        if self.failure is None:
            try:
                self._boundary.optimizer_pre(optimizer)
            except Exception as error:  # noqa: BLE001  as above
                self.fail(error)

    def optimizer_post(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""
        if self.failure is None:
            try:
                self._boundary.optimizer_post(optimizer)
            except Exception as error:  # noqa: BLE001  as above
                self.fail(error)

    def _pass_on(self, call: Callable[..., None], *arguments: Any) -> None:
        if self.failure is None:
            try:
                call(*arguments)
            except Exception as error:  # noqa: BLE001  as above
                self.fail(error)

    def capture(self, key: str, value: Any, dims: Sequence[str] | None) -> None:
        """User code gives a tensor."""
        why = refusal(value) if isinstance(value, torch.Tensor) else None
        if why is not None:
            self._leave_out(f"capture {key!r}", f"the tensor is {why}")
            return
        self._pass_on(self._given, f"capture {key!r}", lambda: self._steps.capture(key, value, dims))

    def _given(self, what: str, take: Callable[[], None]) -> None:
        try:
            take()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            self._leave_out(what, str(error).partition("\n")[0])

    def log(self, scalars: dict[str, Any]) -> None:
        """User code gives scalars."""
        for name, value in scalars.items():
            self._pass_on(self._given, f"scalar {name!r}", lambda n=name, v=value: self._steps.log({n: v}))

    def progress(self, fields: dict[str, Any]) -> None:
        """User code says how far it is."""
        self._pass_on(self._steps.progress, fields)

    def close(self, *, failed: bool) -> None:
        """The recording ends."""
        self._pass_on(lambda: self._steps.close(failed=failed))
