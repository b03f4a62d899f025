"""What a branch changes before it runs on: hyperparameters, attributes and variables, tensors, the seed. # B4

A name is looked for among the optimizers' options first (`optimizer.lr`), then among the things that the walk of the
program finds: `bcl.coupled` is attribute `coupled` of what the program calls `bcl`; `temperature` is a variable of
that name.
Room: replay. May touch: the program's state, at a boundary.
"""

from __future__ import annotations

import difflib
import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer import hyperparameters
from tracer.errors import NameUnknownError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.registry import Registry
    from tracer.walk import Slot


def apply(changes: Mapping[str, Any], registry: Registry, slots: list[Slot]) -> dict[str, Any]:
    """Make the changes; return those of optimizer options that are plain new values. Raise NameUnknownError,
    UsageError."""
    lasting = {}
    for name, change in changes.items():
        if is_hyperparameter(name, registry.optimizers):
            hyperparameters.apply(registry.optimizers, {name: change})
            _tell_schedulers(name, change, registry, slots)
            if not isinstance(change, str):
                lasting[name] = change
        else:
            _put(_slot(name, slots), change, name)
    return lasting


def is_hyperparameter(name: str, optimizers: Mapping[str, torch.optim.Optimizer]) -> bool:
    """Whether `name` is an optimizer's option. Raise NameUnknownError where it is so of several optimizers."""
    try:
        hyperparameters.check(optimizers, {name: "*1"})
    except NameUnknownError as error:
        if "several" in str(error):
            raise
        return False
    except UsageError:
        return True
    return True


def _tell_schedulers(name: str, change: Any, registry: Registry, slots: list[Slot]) -> None:
    """A scheduler works from the learning rate that it was made with: it is changed alike, or it would undo the
    change."""
    if not name.endswith(".lr"):
        return
    for optimizer in registry.optimizers.values():
        for group in optimizer.param_groups:
            if "initial_lr" in group:
                group["initial_lr"] = hyperparameters.changed(float(group["initial_lr"]), change, name)
    for slot in slots:
        rates = getattr(slot.value, "base_lrs", None)
        if slot.kind == "stateful" and isinstance(rates, list):
            slot.value.base_lrs = [hyperparameters.changed(float(rate), change, name) for rate in rates]


def _slot(name: str, slots: list[Slot]) -> Slot:
    targets = {_plain(slot.path): slot.value for slot in slots if slot.kind == "same"}
    owner, _, last = name.rpartition(".")
    wanted = [name, *(f"{_plain(target)}.{last}" for path, target in targets.items() if owner and _ends(path, owner))]
    values = [slot for slot in slots if slot.kind == "value"]
    found = [slot for slot in values if any(_ends(_plain(slot.path), want) for want in wanted)]
    if not found:
        names = sorted({".".join(_plain(s.path).split(".")[-2:]) for s in values} | _by_alias(values, targets))
        near = ", ".join(difflib.get_close_matches(name, names, 5, 0.4) or names[:8])
        raise NameUnknownError(f"the program has no {name!r} that can be set here; near it: {near}")
    return min(found, key=lambda slot: len(slot.path))


def _by_alias(values: list[Slot], targets: Mapping[str, str]) -> set[str]:
    """The attributes of what has a second name, by that name."""
    short = {_plain(target): path.rpartition(".")[2] for path, target in targets.items()}
    owners = ((_plain(slot.path).rpartition("."), slot) for slot in values)
    return {f"{short[owner]}.{last}" for (owner, _, last), _ in owners if owner in short}


def _plain(path: str) -> str:
    """`train.<cell>.bcl` and `__main__:bcl` alike, as dots."""
    return re.sub(r"[:<>]+\.?", ".", path).replace("..", ".").strip(".")


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def _put(slot: Slot, change: Any, name: str) -> None:
    old = slot.value
    if slot.put is None:
        raise UsageError(f"{name} ({slot.path}) cannot be replaced")
    number = isinstance(old, (int, float)) and not isinstance(old, bool)
    fits = number or isinstance(change, type(old)) or old is None
    if not fits:
        raise UsageError(f"{change!r} is no value for {name}, which is {old!r}")
    new = hyperparameters.changed(old, change, name) if number else change
    slot.put(type(old)(new) if number and isinstance(old, float) else new)


def differs(optimizers: Mapping[str, torch.optim.Optimizer], name: str, value: Any) -> bool:
    """Whether option `name` has another value now, because the program set it itself."""
    now = hyperparameters.listed(optimizers)
    owner, _, key = name.rpartition(".")
    same = [v for n, v in now.items() if n == name or (n.endswith("." + key) and (owner in n or owner == "optimizer"))]
    return any(v != value and v != list(np.atleast_1d(value)) for v in same)


def replace_tensors(tensors: Mapping[str, torch.Tensor], registry: Registry) -> None:
    """Put new values into parameters or buffers. Raise NameUnknownError, UsageError where the shape is another."""
    for name, new in tensors.items():
        if name not in registry.tensors:
            raise NameUnknownError(
                f"no tensor {name!r}: there are {', '.join(list(registry.tensors)[:8])}", tensor=name
            )
        live = registry.tensors[name]
        if live.shape != new.shape:
            raise UsageError(f"{name} has shape {list(live.shape)}, the new one {list(new.shape)}", tensor=name)
        with torch.no_grad():
            live.data.copy_(new)


def reseed(seed: int) -> None:
    """Seed all global generators anew."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
