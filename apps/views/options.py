"""How a tab is set: its toggles and lists. Kept in what is chosen, so that the URL holds it and undo takes it back.

Room: apps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.views.view import Host


class Options:
    """The settings of one tab by name, each of the type of its default; what cannot be read is the default."""

    def __init__(self, host: Host, tab: str, **defaults: str | bool | float) -> None:
        """`defaults` name all settings that there are."""
        self._host, self._tab, self._defaults = host, tab, defaults

    def __getitem__(self, name: str) -> Any:
        """What `name` is set to."""
        text, default = self._host.selection.setting(f"{self._tab}.{name}"), self._defaults[name]
        return default if text is None else _read(text, default)

    @property
    def values(self) -> tuple[Any, ...]:
        """All of them, in one order."""
        return tuple(self[name] for name in self._defaults)

    def set(self, name: Any, value: Any) -> bool:
        """Set `name`; return whether it is a setting at all. What is shown is brought up to date."""
        if name not in self._defaults:
            return False
        default = self._defaults[name]
        text = _written(value, default)
        chosen = self._host.selection.with_setting(
            f"{self._tab}.{name}", None if text == _written(default, default) else text
        )
        self._host.choose(settings=chosen.settings)
        return True


def _written(value: Any, default: Any) -> str:
    return str(int(bool(value))) if isinstance(default, bool) else str(value)


def _read(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return text == "1"
    if isinstance(default, float):
        try:
            value = float(text)
        except ValueError:
            return default
        return value if math.isfinite(value) else default
    return text
