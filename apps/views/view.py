"""What every tab is to the viewer. Room: apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from panel.viewable import Viewable

    from apps.family import Relative
    from apps.lookout import Found
    from apps.recorded import Recorded
    from apps.selection import Selection
    from tracer.errors import RewindError


class Host(Protocol):
    """What a tab may ask of the viewer."""

    run: Recorded
    dark: bool
    room: int
    """How high the page's window is, in pixels."""

    @property
    def selection(self) -> Selection:
        """What is chosen."""

    def choose(self, **change: Any) -> None:
        """Choose something else: `step`, `feature`, `layer` ..."""

    def later(self, work: Callable[[Recorded], Any], done: Callable[[Any], None]) -> None:
        """Work in a thread, on the run opened once more; then `done(result or RewindError)` in the page's turn."""

    def aside(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Work in a thread that needs nothing of the run on show; then `done(result or RewindError)`."""

    @property
    def live(self) -> bool:
        """Whether the run on show goes on."""

    def look(self, done: Callable[[Found], None]) -> None:
        """Look into the run in a thread; then `done(what was found)` in the page's turn, perhaps more than once."""

    def rerun(self) -> None:
        """Run the chosen step again; what that gives is then shown."""

    def others(self) -> list[str]:
        """The names of the other runs."""

    def opened(self, names: list[str]) -> list[Recorded]:
        """Runs by name, to be shown beside the one on show; those that cannot be opened are left out."""

    def relatives(self) -> list[Relative]:
        """The parent and the branches of the run on show, among the other runs."""


class View(Protocol):
    """A tab. `root` is built once; `show` brings it up to date with what is chosen, and is called while it is seen.

    It may also have `export() -> {column: array}`, `python() -> str` (how a notebook gets the same) and `close()`.
    """

    root: Viewable

    def show(self) -> None:
        """Paint what is chosen."""

    def restyle(self) -> None:
        """Take on the light or dark colours."""


def said(error: RewindError, run: Recorded) -> str:
    """An error in words, without the path of the run that is on show anyway."""
    return str(error).removeprefix(f"{run.trace.path}: ")


def layer_control(host: Host) -> list[dict[str, Any]]:
    """The list of the layers and weights whose features can be looked at, for a tab's row of controls."""
    rooms = [(name, name) for name in host.run.rooms]
    return (
        [{"name": "layer", "label": "of", "kind": "select", "options": rooms, "value": host.selection.layer}]
        if rooms
        else []
    )


def rerun_action(run: Recorded, k: int) -> dict[str, Any]:
    """The button of an empty state that step `k`, run again, would fill; nothing where it cannot be, or was."""
    if not run.replayable or run.took(k):
        return {}
    busy = "re-executing it; the program starts, which takes some seconds the first time …"
    return {"action": (f"Re-execute step {k}", {"do": "rerun"}, busy)}
