"""Which runs belong together: a run's parent and its branches, told from the facts of the traces alone. # B4

Room: apps. May touch: reads trace.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer import manifest
from tracer.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tracer.manifest import Manifest


@dataclass(frozen=True)
class Relative:
    """A run that shares steps with another: up to `at_step` they are the same. `words` say what it is to the other."""

    name: str
    at_step: int
    words: str


def relatives(name: str, paths: Mapping[str, Path]) -> list[Relative]:
    """The parent of run `name` and the branches off it, among the runs at `paths`; none where its facts are broken."""
    known = {other: facts for other, path in paths.items() if (facts := _read(path)) is not None}
    if name not in known:
        return []
    own = known.pop(name)
    found = []
    for other, facts in known.items():
        if facts.parent is not None and facts.parent.id == own.id:
            found.append(Relative(other, facts.parent.at_step, f"branches off at step {facts.parent.at_step}"))
        elif own.parent is not None and own.parent.id == facts.id:
            found.append(
                Relative(other, own.parent.at_step, f"is what this run branched off at step {own.parent.at_step}")
            )
    return found


def _read(path: Path) -> Manifest | None:
    try:
        return manifest.read(path)
    except (OSError, TraceError):
        return None
