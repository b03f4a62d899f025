"""Hyperparameters by name, read, checked and set: `optimizer.lr` (in all groups), `optimizer.1.lr` (in the second).

An optimizer goes by the last part of the path at which it was found, by the whole path, or, where there is one only, by
`optimizer`. A change is the new value, or "*0.5" (or "0.5x") for half of what it was. A scheduler that works from
values of its own writes over a change when it steps next, as it would over one made by hand.
Room: tracer. May touch: the param_groups of the optimizers it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tracer.errors import NameUnknownError, UsageError

Optimizers = Mapping[str, torch.optim.Optimizer]
_FACTOR = re.compile(r"\*\s*([-+.\deE]+)|([-+.\deE]+)\s*x")


def listed(optimizers: Optimizers) -> dict[str, Any]:
    """Return {name: value} of all that can be changed, as JSON; groups are numbered where there are several."""
    return {name: _plain(group[key]) for name, group, key in _all(optimizers)}


def _all(optimizers: Optimizers) -> Iterator[tuple[str, dict[str, Any], str]]:
    for path, optimizer in optimizers.items():
        groups = optimizer.param_groups
        for i, group in enumerate(groups):
            prefix = _short(path) if len(groups) == 1 else f"{_short(path)}.{i}"
            yield from ((f"{prefix}.{key}", group, key) for key in group if _changeable(key, group[key]))


def _changeable(key: str, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    plain = (bool, int, float, type(None))
    return key != "params" and (isinstance(value, plain) or (isinstance(value, (tuple, list)) and _numbers(value)))


def _numbers(values: Any) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def _short(path: str) -> str:
    return re.split(r"[.:]", path)[-1]


def check(optimizers: Optimizers, changes: Mapping[str, Any]) -> None:
    """Raise NameUnknownError for a name that there is not, UsageError for a value that does not fit."""
    for name, change in changes.items():
        for group, key in _find(optimizers, name):
            changed(group[key], change, name)


def apply(optimizers: Optimizers, changes: Mapping[str, Any]) -> None:
    """Make the changes; raise as `check`."""
    for name, change in changes.items():
        for group, key in _find(optimizers, name):
            value = changed(group[key], change, name)
            if isinstance(group[key], torch.Tensor):
                group[key].fill_(value)
            else:
                group[key] = value


def _find(optimizers: Optimizers, name: str) -> list[tuple[dict[str, Any], str]]:
    owner, _, key = name.rpartition(".")
    owner, number = _split_number(owner)
    found = [optimizers[owner]] if owner in optimizers else [o for p, o in optimizers.items() if _short(p) == owner]
    if not found and owner == "optimizer" and len(optimizers) == 1:
        found = list(optimizers.values())
    groups = [g for o in found[:1] for i, g in enumerate(o.param_groups) if number in (None, i)]
    groups = [g for g in groups if key in g and _changeable(key, g[key])]
    if len(found) > 1:
        paths = ", ".join(p for p in optimizers if _short(p) == owner)
        raise NameUnknownError(f"several optimizers go by {owner!r}: say which, by its path: {paths}")
    if not groups:
        known = ", ".join(listed(optimizers)) or "none yet: nothing was trained"
        raise NameUnknownError(f"no hyperparameter {name!r}; there are: {known}")
    return [(group, key) for group in groups]


def _split_number(owner: str) -> tuple[str, int | None]:
    rest, _, last = owner.rpartition(".")
    return (rest, int(last)) if rest and last.isdigit() else (owner, None)


def changed(old: Any, change: Any, name: str) -> Any:
    """Return the value that `change` makes of `old`, in the type of `old`. Raise UsageError where it does not fit."""
    factor = _FACTOR.fullmatch(change.strip()) if isinstance(change, str) else None
    if factor:
        return _scaled(old, factor.group(1) or factor.group(2), name)
    if isinstance(old, bool):
        fits = isinstance(change, bool)
    elif isinstance(old, (tuple, list)):
        fits = isinstance(change, (tuple, list)) and len(change) == len(old) and _numbers(change)
    else:
        fits = change is None if old is None and not _numbers([change]) else _numbers([change])
    if not fits:
        raise UsageError(f"{change!r} is no value for {name}, which is {_plain(old)!r}")
    if isinstance(old, (tuple, list)):
        return type(old)(change)
    return float(change) if isinstance(old, (float, torch.Tensor)) else change


def _scaled(old: Any, factor: str, name: str) -> Any:
    number = _plain(old)
    if not _numbers([number]):
        raise UsageError(f"{name} is {number!r}: it cannot be multiplied")
    try:
        return number * float(factor)
    except ValueError:
        raise UsageError(f"{factor!r} is no factor for {name}") from None
