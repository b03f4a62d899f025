"""What a step was fed, where the trace does not keep it: held until the run goes on, for those who ask a paused run. # S4.1

A batch that was fed when the pause was not yet known of is held by reference, as the loop itself holds it; torch counts
the changes of a tensor, so one that the loop has overwritten since is told, and never shown for what was fed.
Room: tracer. May touch: only reads the batches it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from tracer import values
from tracer.errors import MissingDataError

Leaf = torch.Tensor | np.ndarray
_MOST = 64
_STEP = "make one step: its batch is then kept from the start"


class Fed:
    """The batch of one step, or the inputs that its model was given, piece by piece."""

    def __init__(self) -> None:
        """Nothing was fed yet."""
        self._nodes: list[Any] = []
        self._buffers: list[bytes | memoryview] = []
        self._held: list[tuple[Leaf, int | None]] = []

    def add(self, value: Any, *, copy: bool) -> None:
        """Take `value`; `copy` where it is already known that the run will wait after this step."""
        if len(self._nodes) < _MOST:
            first = len(self._buffers)
            self._nodes.append(values.encode(value, self._buffers, leaf=None if copy else self._hold))
            self._buffers[first:] = [bytes(data) for data in self._buffers[first:]]

    def _hold(self, leaf: Leaf) -> dict[str, Any]:
        self._held.append((leaf, _version(leaf)))
        return {"$": "held", "i": len(self._held) - 1}

    def stored(self) -> tuple[Any, list[bytes]]:
        """Return all of it as JSON and buffers (`tracer.values`). Raise MissingDataError: nothing, or not as it was fed."""
        if not self._nodes:
            raise MissingDataError(f"what this step was fed was not kept; {_STEP}")
        buffers = list(self._buffers)
        nodes = self._filled(self._nodes, buffers)
        return nodes[0] if len(nodes) == 1 else nodes, [bytes(data) for data in buffers]

    def _filled(self, node: Any, buffers: list[bytes | memoryview]) -> Any:
        """`node` with the tensors that were held by reference in their places."""
        if isinstance(node, list):
            return [self._filled(part, buffers) for part in node]
        if not isinstance(node, dict):
            return node
        if node.get("$") == "held":
            return values.encode(_unchanged(*self._held[node["i"]]), buffers)
        return {key: self._filled(part, buffers) for key, part in node.items()}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """The tensors and arrays of a batch, by their place in it: `0`, `1.mask`; one that is the batch is `batch`."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        yield path or "batch", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from leaves(part, f"{path}.{i}" if path else str(i))


def facts_of(name: str, leaf: Leaf) -> dict[str, Any]:
    """What is said of an array of a batch before its numbers are asked for."""
    dtype = leaf.dtype.name if isinstance(leaf, np.ndarray) else values.dtype_name(leaf.dtype)
    return {"name": name, "dtype": dtype, "shape": list(leaf.shape)}


def _version(leaf: Leaf) -> int | None:
    """How often a tensor was changed; None of what does not count that."""
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else None


def _unchanged(leaf: Leaf, before: int | None) -> Leaf:
    if before is None:
        raise MissingDataError(f"what this step was fed cannot be told from what the loop made of it; {_STEP}")
    if _version(leaf) != before:
        raise MissingDataError(f"what this step was fed was overwritten by the loop; {_STEP}")
    return leaf
