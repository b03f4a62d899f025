"""A session that shows re-executed steps to a user's function, in the program's own process. # B3

Room: replay. May touch: what a session touches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.session import Session
from replay.timeline import plan
from replay.verdict import Verdict
from tracer import values
from tracer.errors import ReplayError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from replay.channel import Message
    from replay.function import Function
    from tracer.trace import Trace

TOGETHER = 64
"""So many steps are looked at between two answers."""


class Lens(Session):
    """Replays one trace; `look` runs a step again and returns what the function says of it."""

    def __init__(
        self,
        trace: Trace | str | Path,
        function: Function,
        *,
        program: Callable[[], Any] | None = None,
        anyway: bool = False,
    ) -> None:
        """As Session; `function` is compiled in the program's process when it starts."""
        super().__init__(trace, program=program, anyway=anyway)
        self._function = function
        self._engine_options = {"kind": "observing"}
        self._defined: object = None
        self._failed = ""

    def look(self, k: int) -> tuple[Verdict, dict[str, Any]]:
        """Run step `k` again; return its verdict, and the function's values. Raise UsageError where the function
        raises."""
        return self.look_at([k])[0]

    def look_at(self, steps: Sequence[int]) -> list[tuple[Verdict, dict[str, Any]]]:
        """The same for ascending steps, which are run in one go."""
        found = []
        for start in range(0, len(steps), TOGETHER):
            found += self._look_at(list(steps[start : start + TOGETHER]))
        return found

    def _look_at(self, steps: list[int]) -> list[tuple[Verdict, dict[str, Any]]]:
        if self._at != steps[0]:
            self.seek(steps[0])
        found = self._looked(steps)
        if found is None and len(steps) > 1:
            # The program came to its end on the way, and has to be started again: step by step, then.
            return [self._look_at([k])[0] for k in steps]
        for attempt in (1, 3) if found is None else ():
            self._stop()
            self._at = int(self._go(plan(steps[0], self._keyframes(), self._spans), attempt)["at"])
            found = found or self._looked(steps)
        if found is None:
            raise ReplayError(f"step {steps[0]} could not be looked at: {self._failed}", step=steps[0])
        return found

    def _looked(self, steps: list[int]) -> list[tuple[Verdict, dict[str, Any]]] | None:
        """What the engine, which is at the first of them, says; None where its program came to an end."""
        self._define()
        message, parts = self._ask({"do": "look", "steps": steps}, raises=False)
        self._at = None
        if "error" in message:
            self._failed = str(message.get("detail", message["error"]))
            self._must_be_functions(message)
            self._stop()
            return None
        self._at = self.position = steps[-1] + 1
        rows = values.decode(message["value"], parts.__getitem__)
        return [(Verdict(**row["verdict"]), row["values"]) for row in rows]

    def _must_be_functions(self, message: Message) -> None:
        if message["error"] == "function":
            k = message["step"]
            raise UsageError(f"{self._function.name} at step {k}: {message['detail']}", step=k)

    def _define(self) -> None:
        if self._defined is not self._engine:
            message, _ = self._ask({"do": "define", "function": self._function.as_dict()}, raises=False)
            self._must_be_functions({"step": self.position, "error": "", **message})
            self._defined = self._engine
