"""What the browser paints itself: the page's frame, pictures, tables, matrices.

Each is a script of `static/` that has its class's name, and a style sheet of that name where it needs one. It gets whole
frames of bytes (`apps.frame`) and sends small JSON messages; it asks for its first frame by `{"do": "ready"}`, so
nothing is lost while the page loads. No script imports anything: no request leaves the machine.
Room: apps. May touch: reads `static/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from panel.custom import JSComponent

from apps.frame import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_STATIC = Path(__file__).with_name("static")


def _read(name: str) -> str:
    path = _STATIC / name
    return path.read_text("utf-8") if path.exists() else ""


class Surface(JSComponent):
    """A component that the browser paints from frames; the last one is sent again when a page asks."""

    __abstract = True
    _esm = "export const render = () => document.createElement('div')"
    _with: ClassVar[tuple[str, ...]] = ()
    """Further scripts of `static/`, each with its style sheet, that are a part of this one."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Take the script and the style sheets from `static/`."""
        names = (*cls._with, cls.__name__.lower())
        colours = f"const CSS = {json.dumps(_read('app.css'))};"
        cls._esm = "\n".join([colours, *(_read(f"{name}.js") for name in ("common", *names))])
        cls._stylesheets = [_read(f"{name}.css") for name in ("surface", *names)]
        super().__init_subclass__(**options)

    def __init__(self, heard: Callable[[dict[str, Any]], None] | None = None, **params: Any) -> None:
        """`heard` gets each message of the page but `ready`, which is answered here."""
        super().__init__(**{"sizing_mode": "stretch_width", **params})
        self._heard = heard
        self._frame: bytes | None = None
        self._ready = False

    def send(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Paint this frame."""
        self._frame = pack(header, arrays)
        if self._ready:
            self._send_msg(self._frame)

    def tell(self, header: Mapping[str, Any]) -> None:
        """Send a small message that is no frame: it is not kept."""
        if self._ready:
            self._send_msg(pack(header))

    def _handle_msg(self, data: Any) -> None:
        if not isinstance(data, dict):
            return
        if data.get("do") == "ready":
            self._ready = True
            if self._frame is not None:
                self._send_msg(self._frame)
        if self._heard is not None:
            self._heard(data)


class Shell(Surface):
    """Run, facts, scrubber, tabs, keys; of a live run its progress and its buttons. It brings the page's colours."""

    _with = ("line", "strip", "photo")


class Overview(Surface):
    """The first look at a run."""


class Grid(Surface):
    """The images of a batch."""


class Table(Surface):
    """The feature table."""


class Bar(Surface):
    """A row of controls, and words beside them."""


class Note(Surface):
    """Words where there is nothing to show, and what one may do about it."""


class Pictures(Surface):
    """A few pictures at one colour scale."""


class Maps(Surface):
    """Matrices side by side with one cursor."""


class Replayer(Surface):
    """The replay tab."""


class Console(Surface):
    """The SQL console."""
