"""Which traces lie under a directory, told from their small files alone: no trace is opened, no tensor read.

Room: tracer. May touch: reads trace.json, the tails and the segments' commits of what it finds; writes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer import manifest
from tracer.errors import TraceError, UsageError
from tracer.process import standing
from tracer.segments import list_commits, list_tails, read_commit
from tracer.tail import read_tail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.manifest import Manifest, Parent

_PARTS = ("tensors.zarr", "metrics", "tail")


def ls(directory: Path | str) -> list[dict[str, Any]]:
    """Return what is known of every trace at or under `directory`, newest first, broken ones with their `error`.

    Keys: path, created (Unix time or None), steps (n or None), sessions, status, detail, bytes, script, id, error; of a
    branch also parent, parent_id, at_step, change (see `as_tree`). What is not known is None.
    Raise UsageError if there is no such directory.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UsageError(f"{root} is no directory", path=root)
    found = [_facts(path) for path in _traces(root)]
    return sorted(found, key=lambda facts: facts["created"] or 0.0, reverse=True)


def _traces(root: Path) -> Iterator[Path]:
    for name, directories, files in os.walk(root):
        whole = "trace.json" in files
        if whole or sum(part in directories for part in _PARTS) >= 2:
            directories.clear()
            yield Path(name)
        directories[:] = [d for d in directories if not d.startswith(".") and d != "__pycache__"]


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "path": str(path),
        "created": None,
        "steps": None,
        "sessions": None,
        "status": None,
        "detail": None,
        "bytes": _nbytes(path),
        "script": None,
        "id": None,
        "parent": None,
        "parent_id": None,
        "at_step": None,
        "change": None,
        "error": None,
    }
    try:
        known = manifest.read(path)
        facts |= _known(known) | {"steps": _steps(path)}
    except TraceError as error:
        facts["error"] = str(error)
    return facts


def _known(known: Manifest) -> dict[str, Any]:
    return {
        "created": known.created,
        "sessions": len(known.sessions),
        "status": standing(known.sessions[-1]) if known.sessions else None,
        "detail": known.detail,
        "script": known.program.path or known.program.module,
        "id": known.id,
        **({} if known.parent is None else _origin(known.parent)),
    }


def _origin(parent: Parent) -> dict[str, Any]:
    return {"parent": parent.trace, "parent_id": parent.id, "at_step": parent.at_step, "change": parent.change}


def as_tree(found: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Order what `ls` returns as (depth, facts): branches follow their parent, where it is among them, one deeper."""
    ids = {facts["id"] for facts in found if facts["id"]}
    below: dict[str | None, list[dict[str, Any]]] = {}
    for facts in found:
        own = facts["parent_id"] if facts["parent_id"] in ids and facts["parent_id"] != facts["id"] else None
        below.setdefault(own, []).append(facts)
    rows: list[tuple[int, dict[str, Any]]] = []

    def descend(owner: str | None, depth: int) -> None:
        for facts in below.pop(owner, ()):
            rows.append((depth, facts))
            if facts["id"]:
                descend(facts["id"], depth + 1)

    descend(None, 0)
    rows += [(0, facts) for group in below.values() for facts in group]  # a circle has no root: nothing is left out
    return rows


def _steps(path: Path) -> int:
    """One more than the last recorded step: from the newest commit that has one, or the tails that follow it."""
    tails = list_tails(path)
    commits = list_commits(path)
    last = next((step for key in reversed(commits) if (step := _last_step(read_commit(commits[key]))) >= 0), -1)
    for key, tail in tails.items():
        if key not in commits:
            steps = (record.step for record in read_tail(tail) if record.kind == "step" and record.step is not None)
            last = max(last, *steps, -1)
    return last + 1


def _last_step(facts: dict[str, Any]) -> int:
    last = facts.get("last_step")
    return last if isinstance(last, int) else -1


def _nbytes(path: Path) -> int:
    total = 0
    for name, _, files in os.walk(path):
        for file in files:
            try:
                total += os.stat(os.path.join(name, file)).st_size
            except OSError:  # A run that goes on replaces its files while we look.
                continue
    return total
