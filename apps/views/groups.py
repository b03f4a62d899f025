"""Charts under headings: which scalars belong together, by what their names begin with (S2.3). Room: apps. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

RECORDED: Final = "recorded of each step"
LOGGED: Final = "logged"
HINDSIGHT: Final = "hindsight"
OWN: Final = ("loss", "lr", "grad_norm", "duration")
SHOWN: Final = 24
"""So many charts are drawn at first; groups beyond them are folded until somebody opens them."""
AUTO: Final = "auto"
_PART = re.compile(r"^(?:([^/.]+)[/.]|(train|training|val|valid|validation|test|eval|dev)_)(?=.)", re.IGNORECASE)
_SAME: Final = {"training": "train", "valid": "val", "validation": "val"}


def heading(name: str) -> str:
    """Under what a scalar stands.

    >>> [heading(n) for n in ("loss", "train/loss", "val_accuracy", "validation.rmse", "accuracy", "bcl/alive/mean")]
    ['recorded of each step', 'train', 'val', 'val', 'logged', 'bcl']
    """
    if name in OWN:
        return RECORDED
    found = _PART.match(name)
    if found is None:
        return LOGGED
    word = (found[1] or found[2]).lower()
    return _SAME.get(word, word)


def grouped(names: Sequence[str], late: Collection[str] = ()) -> list[tuple[str, list[str]]]:
    """Names under their headings, in the order in which those first come; `late` ones are hindsight's, and come last."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda n: n in late):
        groups.setdefault(HINDSIGHT if name in late else heading(name), []).append(name)
    return list(groups.items())


def folded(groups: Sequence[tuple[str, Sequence[str]]], chosen: str) -> set[str]:
    """The headings whose charts are not shown: those of `chosen` (a list with commas), or what is too much at first."""
    known = {name for name, _ in groups}
    if chosen != AUTO:
        return set(chosen.split(",")) & known
    shown, found = 0, set()
    for name, own in groups:
        if shown and shown + len(own) > SHOWN:
            found.add(name)
        else:
            shown += len(own)
    return found


def toggled(groups: Sequence[tuple[str, Sequence[str]]], chosen: str, name: str) -> str:
    """What is chosen once the heading `name` was pressed."""
    return ",".join(sorted(folded(groups, chosen) ^ {name}))
