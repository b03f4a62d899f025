"""Of which kinds a program's optimizers, schedulers and modules are: one that it has made anew since may be another kind of thing.

State of one kind is none of another's: Adam does not go on from what SGD has, nor does a model whose ReLU has become a Tanh.
Room: tracer. Reads the program; changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from tracer.registry import Registry
    from tracer.walk import Slot


def name(value: Any) -> str:
    """The name of its class."""
    return type(value).__qualname__


def options(registry: Registry) -> list[tuple[str, list[str]]]:
    """The options that each optimizer which a variable leads to takes, by its path: those of its class, whatever it has now."""
    found = [(path, sorted(getattr(o, "defaults", {}))) for path, o in registry.optimizers.items()]
    return [(path, names) for path, names in found if names and not path.startswith("<")]


def other_optimizers(recorded: Sequence[tuple[str, Sequence[str]]], registry: Registry) -> list[str]:
    """One line for each optimizer that takes other options than the recorded one: it could not take its state either."""
    now = dict(options(registry))
    return [
        f"the optimizer at {path}: recorded with {', '.join(names)}, the program's has {', '.join(now[path])}"
        for path, names in recorded
        if path in now and list(names) != now[path]
    ]


def classes(module: torch.nn.Module) -> list[list[str]]:
    """The name and class of each part of a model."""
    return [[inner, name(each)] for inner, each in module.named_modules()]


def other_modules(recorded: dict[str, list[list[str]]], registry: Registry) -> list[str]:
    """One line for each part of a model that has the tensors it had, and computes something else."""
    return [
        f"{path}{'.' if inner else ''}{inner}: it was a {was}, the program has a {here}"
        for path, parts in recorded.items()
        if path in registry.modules
        for (inner, was), (same, here) in zip(parts, classes(registry.modules[path]), strict=False)
        if inner == same and was != here
    ]


def others(recorded: Sequence[Sequence[Any]], slots: Sequence[Slot]) -> list[str]:
    """One line for each of a keyframe's slots whose state is none for what the program has there."""
    here = {slot.path: slot for slot in slots}
    found = [(path, other(kind, here.get(path))) for path, _, _, *kind in recorded]
    return [f"{path}: {why}" for path, why in found if why is not None]


def other(recorded: Sequence[str], slot: Slot | None) -> str | None:
    """Why the state of a `recorded` class, if there is one, is none for what is in `slot`."""
    if slot is None or not recorded or slot.kind != "stateful" or name(slot.value) == recorded[0]:
        return None
    return f"it was a {recorded[0]}, the program has a {name(slot.value)}"
