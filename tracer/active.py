"""Who is listening now: the recorder of this process, or the engine that re-executes its program, or nobody.

`capture`, `log` and `progress` are what user code calls; with nobody listening each costs one comparison. Importing this
module does not import torch.
Room: tracer. Holds the one piece of process-wide state that Rewind has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Listener(Protocol):
    """What receives the user's captures, scalars and progress."""

    def capture(self, key: str, value: Any, dims: Sequence[str] | None) -> None: ...

    def log(self, scalars: dict[str, Any]) -> None: ...

    def progress(self, fields: dict[str, Any]) -> None: ...


class _Active:
    listener: Listener | None = None


_active = _Active()


def listener() -> Listener | None:
    """Return who listens, or None."""
    return _active.listener


def set_listener(new: Listener | None) -> Listener | None:
    """Make `new` the listener and return the one before."""
    old, _active.listener = _active.listener, new
    return old


def capture(key: str, value: Any, *, dims: Sequence[str] | None = None) -> None:
    """Give the current step a named tensor, array or number; a copy is taken. # S4.3

    `key` is "layer/name". A 1-D tensor of shape [D] also becomes column `name` of the table `features`, a row per feature,
    unless `dims` says that its dimension is another one, as in `dims=("sample",)`. Nothing happens when nothing records.
    """
    if _active.listener is not None:
        _active.listener.capture(key, value, dims)


def log(**scalars: Any) -> None:
    """Give the current step named scalars: a column of `steps` each. `batch_size=` sets the step's batch size. # S1.1"""
    if _active.listener is not None:
        _active.listener.log(scalars)


def progress(**fields: Any) -> None:
    """Say how far the run is, in any of S3's fields (`total_steps`, `batch_number`, `current_file` ...). # S3.1"""
    if _active.listener is not None:
        _active.listener.progress(fields)
