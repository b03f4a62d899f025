"""What a recording keeps. Room: tracer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracer.errors import UsageError

if TYPE_CHECKING:
    from tracer.flight import Flight
    from tracer.registry import Registry

DETAILS = ("metrics", "replay", "full")
SLOW_DISK = ("wait", "drop")
"""What to do where the disk does not keep up: the training waits, or weights and gradients of steps are left out."""
SMALL_MODEL = 1_000_000
"""Models with at most this many parameters have their weights kept at every step, unless a detail level was asked for."""


@dataclass
class Options:
    """The options of a recording; `detail` and `weights` None mean: decided by the size of the model."""

    every: int = 1
    detail: str | None = None
    weights: bool | None = None
    keyframe_every: int | None = None
    sample_counts: dict[str, int] = field(default_factory=dict)
    weights_by_size: bool = field(default=False, init=False)
    """Whether nobody asked for the weights of every step: they are kept for as long as there is room."""
    batch_bytes: int | None = None
    """Batches that do not come again are stored whole until they have taken so much, then how they were made; None: by room."""
    flight: Flight | None = None
    slow_disk: str = "wait"

    def __post_init__(self) -> None:
        """Raise UsageError for values that make no sense."""
        if self.detail not in (None, *DETAILS):
            raise UsageError(f"detail {self.detail!r} is none of {', '.join(DETAILS)}")
        if self.every < 1:
            raise UsageError(f"every={self.every}: keep every N-th step, N at least 1")
        if self.keyframe_every is not None and self.keyframe_every < 1:
            raise UsageError(f"keyframe_every={self.keyframe_every}: must be at least 1")
        if self.batch_bytes is not None and self.batch_bytes < 0:
            raise UsageError(f"batch_bytes={self.batch_bytes}: no number of bytes")
        if self.slow_disk not in SLOW_DISK:
            raise UsageError(f"slow_disk {self.slow_disk!r} is none of {', '.join(SLOW_DISK)}")
        if self.flight is not None:
            # In memory a step is whole, and two keyframes wait among the last steps: what is written can be replayed.
            self.detail, self.weights = "full", True
            self.keyframe_every = self.keyframe_every or max(1, self.flight.last // 2)
        if self.weights is None and self.detail is not None:
            self.weights = self.detail == "full"

    @property
    def replayable(self) -> bool:
        """Whether batches, randomness and keyframes are kept."""
        return self.detail != "metrics"

    @property
    def grads(self) -> bool:
        """Whether gradients are kept."""
        return self.detail == "full"

    def decide_weights(self, registry: Registry) -> None:
        """Decide, once the model is known, whether weights are kept at every step."""
        if self.weights is None:
            self.weights = sum(registry.tensors[name].numel() for name in registry.params) <= SMALL_MODEL
            self.weights_by_size = self.weights
