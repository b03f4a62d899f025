"""What every tab is to the viewer. Room: apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from panel.viewable import Viewable

    from apps.family import Relative
    from apps.recorded import Recorded
    from apps.selection import Selection


class Host(Protocol):
    """What a tab may ask of the viewer."""

    run: Recorded
    dark: bool

    @property
    def selection(self) -> Selection:
        """What is chosen."""

    def choose(self, **change: Any) -> None:
        """Choose something else: `step`, `feature`, `layer` ..."""

    def later(self, work: Callable[[Recorded], Any], done: Callable[[Any], None]) -> None:
        """Work in a thread, on the run opened once more; then `done(result or RewindError)` in the page's turn."""

    def aside(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Work in a thread that needs nothing of the run on show; then `done(result or RewindError)`."""

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
