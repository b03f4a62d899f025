"""An engine that looks at one step from inside, where it is asked to: what its modules gave, each sample's loss. # C3

Room: replay. May touch: what the engine may, and what `activations.Watch` puts on for that step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.activations import Watch
from replay.engine import Engine
from tracer import registry

if TYPE_CHECKING:
    from types import FrameType

    from replay.channel import Message


class WatchingEngine(Engine):
    """Obeys `watch` in a `step`, and then `watched`: send what was seen of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As Engine."""
        super().__init__(*args, **options)
        self._handlers |= {"watched": self._on_watched}
        self._watch = Watch()

    def _on_step(self, message: Message, parts: list[bytes]) -> None:
        super()._on_step(message, parts)
        if message.get("watch"):
            self._watch.begin()

    def begin(self, batch: Any, *, left: bool, iterator: Any) -> None:
        """What ran before the batch was there is no part of the step."""
        self._watch.clear()
        super().begin(batch, left=left, iterator=iterator)

    def _judge_step(self, frame: FrameType) -> None:
        self._watch.end()
        super()._judge_step(frame)

    def ended(self, message: Message) -> None:
        """The program is over, perhaps in the step that was watched."""
        self._watch.end()
        super().ended(message)

    def _on_watched(self, message: Message, parts: list[bytes]) -> None:
        seen = self._watch.seen(registry.module_names(self.registry) if self.registry is not None else {})
        self._watch.clear()
        tensors = {"activations": seen.activations, "sample_losses": seen.sample_losses}
        self._send_tensors(tensors, left_out=seen.left_out)
