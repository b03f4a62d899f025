"""The tabs of the app: each a pure function from arrays to figures, and a thin class that keeps them up to date."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from apps.views.view import Host, View

TITLES: Final = {
    "overview": "Overview",
    "batch": "Batch",
    "features": "Features",
    "forces": "Forces",
    "matrices": "Matrices",
    "trajectories": "Trajectories",
    "metrics": "Metrics",
    "replay": "Replay",
    "sql": "SQL",
}


def make_view(tab: str, host: Host) -> View:
    """Build a tab, when it is first seen."""
    return getattr(import_module(f"apps.views.{tab}"), f"{tab.title() if tab != 'sql' else 'Sql'}View")(host)
