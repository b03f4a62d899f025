"""The parts of a step's record: batches, randomness, gradients, as named sections of bytes. Room: tracer. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer import frames, registry, values
from tracer.batches import batch_size
from tracer.fed import Fed, facts_of
from tracer.tail import Buffer, checksum

if TYPE_CHECKING:
    from types import FrameType

    from tracer.batches import Draft, EncodedBatch
    from tracer.keyframe import Keyframe
    from tracer.making import Recipe

WHOLE = 2**53
"""Every whole number up to this one is a float."""
Section = tuple[str, Sequence[Buffer], str | None]


@dataclass
class OpenStep:
    """What is known of the step that is open: thrown away or written when it ends."""

    fed: Fed = field(default_factory=Fed)
    inputs: Draft | None = None
    input_size: int | None = None
    rng_hash: str | None = None
    site: list[list[Any]] | None = None
    epoch: int | None = None
    keyframe: Keyframe | None = None
    keyframe_can_wait: bool = False
    losses: list[torch.Tensor] = field(default_factory=list)
    closure_losses: int = 0
    lr: float | None = None
    more_lr: dict[str, float] = field(default_factory=dict)
    single: dict[str, float] = field(default_factory=dict)
    grad_squares: float = 0.0
    squares_before: float = 0.0
    closures_before: int = 0
    stepped: bool = False
    grads: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    captures: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    before: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    watched: bool = False
    started: float = field(default_factory=time.perf_counter)

    def watch_all(self, tensors: dict[str, torch.Tensor]) -> None:
        """The run will wait after this step: who asks then is to see all of it, what it starts from, too."""
        self.watched = True
        self.before = [(facts_of(name, tensor), bytes(values.tensor_bytes(tensor))) for name, tensor in tensors.items()]

    def note_losses(self, losses: tuple[Any, ...], *, in_optimizer: bool) -> None:
        """Keep what a backward pass started from; of a closure that runs several times, its first evaluation."""
        if in_optimizer:
            self.closure_losses += 1
            if self.closure_losses > 1:
                return
        for loss in losses:
            if isinstance(loss, torch.Tensor) and loss.numel() == 1:
                self.losses.append(loss.detach())

    def loss(self) -> float | None:
        """The sum of what was propagated back in this step (of a closure, its first value); None if nothing scalar was."""
        if not self.losses:
            return None
        if len(self.losses) == 1:
            return float(self.losses[0])
        found = [float(loss) for loss in self.losses]
        self.single = {f"loss_{i}": value for i, value in enumerate(found)}
        return sum(found[1:], found[0])

    def scalars(self) -> dict[str, float]:
        """Every further scalar of the step: more learning rates, single losses where there were several, what was logged."""
        return {**self.more_lr, **self.single, **self.logs}

    def note_options(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        """Keep the learning rates in force: `lr` is the first group's of the first optimizer that steps."""
        for i, group in enumerate(optimizer.param_groups):
            rate = number(group.get("lr"))
            if self.lr is None:
                self.lr = rate
            elif (i, index) != (0, 0):
                self.more_lr[f"lr_{i}" if index == 0 else f"lr_{index}_{i}"] = rate

    def norm(self) -> float | None:
        """The gradient norm over all optimizers that stepped."""
        return math.sqrt(self.grad_squares) if self.stepped else None

    def capture(self, key: str, value: Any, dims: Sequence[str] | None) -> None:
        """Keep a copy of `value`; one number is logged."""
        tensor = value.detach() if isinstance(value, torch.Tensor) else np.asarray(value)
        if tensor.ndim == 0:
            self.log({key: tensor})
        else:
            self._keep(key, torch.as_tensor(tensor), dims)

    def _keep(self, key: str, tensor: torch.Tensor, dims: Sequence[str] | None) -> None:
        self.captures[key] = (described(key, tensor, dims), bytes(values.tensor_bytes(tensor)))

    def give_said(self, other: OpenStep) -> None:
        """What the program said in this step, it said of `other`."""
        if self.logs or self.captures:
            other.logs.update(self.logs)
            other.captures.update(self.captures)
            self.logs, self.captures = {}, {}

    def log(self, scalars: dict[str, Any]) -> None:
        """Keep scalars; one that no float holds as a capture, an array of one."""
        for name, value in scalars.items():
            found = scalar(value)
            if name == "batch_size" and not (isinstance(found, float) and found.is_integer() and found >= 0):
                raise ValueError(f"{value} is no number of samples")
            if isinstance(found, float):
                self.logs[name] = found
            else:
                self._keep(name, found, None)


def same_tensors(a: registry.Registry, b: registry.Registry) -> bool:
    """Whether two registries have the same tensors under the same names."""
    return list(a.tensors) == list(b.tensors) and all(a.tensors[n] is b.tensors[n] for n in a.tensors)


def number(value: Any) -> float:
    """A Python float; NaN stands for None."""
    if value is None:
        return math.nan
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def scalar(value: Any) -> float | torch.Tensor:
    """One number as the float that it is, NaN for None; as a tensor of one where no float is it: 2^53 + 1, a complex number.

    Raise TypeError, ValueError, RuntimeError for what is no number, OverflowError where 64 bits do not hold it.
    """
    plain = value.item() if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) else value
    if plain is None:
        return math.nan
    if isinstance(plain, complex) or (isinstance(plain, int) and not -WHOLE <= plain <= WHOLE):
        return value.detach().reshape(1) if isinstance(value, torch.Tensor) else _of_one(plain)
    return float(plain)


def _of_one(plain: complex) -> torch.Tensor:
    if isinstance(plain, complex):
        return torch.tensor([plain], dtype=torch.complex128)
    if not -(2**63) <= plain < 2**64:
        raise OverflowError(f"a number of {plain.bit_length()} bits, more than 64")
    return torch.tensor([plain], dtype=torch.int64 if plain < 2**63 else torch.uint64)


def described(key: str, tensor: torch.Tensor, dims: Sequence[str] | None) -> dict[str, Any]:
    """What a record says of a captured tensor."""
    return {
        "key": key,
        "dtype": values.dtype_name(tensor.dtype),
        "shape": list(tensor.shape),
        "dims": list(dims) if dims is not None else None,
    }


def model_inputs(args: tuple[Any, ...], caller: FrameType | None) -> list[Any]:
    """The model's inputs, and the tensors beside them in the loop that have as many rows: targets, most likely."""
    inputs = list(args)
    for first in inputs:
        if isinstance(first, torch.Tensor) and first.dim():
            break
    else:
        return inputs
    if caller is None:
        return inputs
    rows, known = first.shape[0], set(map(id, inputs))
    for value in frames.live_locals(caller, torch.Tensor).values():
        plain = value.grad_fn is None and not value.requires_grad and value.dim() > 0
        if plain and value.shape[0] == rows and id(value) not in known:
            known.add(id(value))
            inputs.append(value)
    return inputs


def input_size(inputs: list[Any]) -> int | None:
    """The number of samples that a model was given: a vector of numbers is one sample."""
    for i, first in enumerate(inputs):
        if isinstance(first, torch.Tensor):
            if first.dim() > 1 and i == 0:
                return first.shape[0]
            return batch_size(inputs) if first.dim() > 1 or not first.is_floating_point() else 1
    return batch_size(inputs)


def add_ids(sections: list[Section], batch: EncodedBatch, prefix: str) -> None:
    """Append the sample ids and the inline bytes of a batch."""
    for j, ids in enumerate(batch.ids):
        sections.append((f"{prefix}ids{j}", [ids], checksum([ids])))
    if batch.inline:
        sections.append((f"{prefix}inline", batch.inline, checksum(batch.inline)))


def encode_rng(sections: list[Section], state: dict[str, Any] | None, prefix: str) -> dict[str, Any] | None:
    """Append the generators' state, and return what describes it; None stands for: not moved."""
    if state is None:
        return None
    buffers: list[bytes | memoryview] = []
    return _section(sections, f"{prefix}rng", values.encode(state, buffers), buffers)


def encode_recipe(sections: list[Section], recipe: Recipe, prefix: str) -> dict[str, Any]:
    """Append what a batch is made again from, and return what describes it."""
    buffers: list[bytes | memoryview] = []
    return _section(sections, f"{prefix}made", recipe.encode(buffers), buffers)


def _section(sections: list[Section], name: str, node: Any, buffers: list[bytes | memoryview]) -> dict[str, Any]:
    sections.append((name, buffers, checksum(buffers)))
    return {"node": node, "sizes": [len(b) for b in buffers], "section": name}


def pack_grads(grads: dict[str, bytes], layout: registry.Layout) -> list[bytes]:
    """The gradients in the layout of the state, piece by piece; parameters without one are zero."""
    pieces, place = [], 0
    for entry in sorted(layout.entries, key=lambda entry: entry.offset):
        grad = grads.get(entry.name, b"")
        if entry.nbytes and len(grad) == entry.nbytes:
            pieces += [bytes(entry.offset - place), grad]
            place = entry.offset + entry.nbytes
    return [piece for piece in (*pieces, bytes(layout.nbytes - place)) if piece]
