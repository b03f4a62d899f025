"""What the browser paints itself: the page's frame, pictures, tables, matrices. Each is one script of `static/`.

A surface gets whole frames of bytes (`apps.frame`) and sends small JSON messages; it asks for its first frame by
`{"do": "ready"}`, so nothing is lost while the page loads. No script imports anything: no request leaves the machine.
Room: apps. May touch: reads `static/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panel.custom import JSComponent

from apps.frame import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_STATIC = Path(__file__).with_name("static")


def _read(name: str) -> str:
    path = _STATIC / name
    return path.read_text("utf-8") if path.exists() else ""


def _script(*names: str) -> str:
    css = json.dumps(_read("app.css"))
    return "\n".join([f"const CSS = {css};", _read("common.js"), *(_read(f"{name}.js") for name in names)])


class Surface(JSComponent):
    """A component that the browser paints from frames; the last one is sent again when a page asks."""

    __abstract = True
    _esm = "export const render = () => document.createElement('div')"

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


def _styles(*names: str) -> list[str]:
    return [_read("surface.css"), *(_read(f"{name}.css") for name in names)]


class Shell(Surface):
    """Run, facts, scrubber, tabs, keys; of a live run its progress and its buttons."""

    _esm = _script("line", "strip", "photo", "shell")
    _stylesheets = _styles("shell", "strip")


class Overview(Surface):
    """The first look at a run."""

    _esm = _script("overview")
    _stylesheets = _styles("overview")


class Grid(Surface):
    """The images of a batch."""

    _esm = _script("grid")
    _stylesheets = _styles("grid")


class Table(Surface):
    """The feature table."""

    _esm = _script("table")
    _stylesheets = _styles("table")


class Bar(Surface):
    """A row of controls, and words beside them."""

    _esm = _script("bar")
    _stylesheets = _styles("bar")


class Note(Surface):
    """Words where there is nothing to show, and what one may do about it."""

    _esm = _script("note")
    _stylesheets = _styles("note")


class Pictures(Surface):
    """A few pictures at one colour scale."""

    _esm = _script("pictures")
    _stylesheets = _styles("pictures")


class Maps(Surface):
    """Matrices side by side with one cursor."""

    _esm = _script("maps")
    _stylesheets = _styles("maps")


class Replayer(Surface):
    """The replay tab."""

    _esm = _script("replayer")
    _stylesheets = _styles("replayer")


class Console(Surface):
    """The SQL console."""

    _esm = _script("console")
    _stylesheets = _styles("console")
