"""What is chosen in the app: run, step, feature, tab, how a tab is set; as a URL says it, and with its history.

Room: apps. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

TABS: Final = ("overview", "batch", "features", "forces", "matrices", "trajectories", "metrics", "replay", "sql")
MOST_WATCHED: Final = 12
_LONGEST: Final = 2000
"""Characters of one setting; what is longer is no link that one shares."""


@dataclass(frozen=True)
class Selection:
    """A place in a run. `watched` are the features whose trajectories are shown, the chosen one among them.

    `settings` are what was set on the tabs, as text by name ("metrics.log"): what is not set is not among them.
    """

    run: str = ""
    step: int = 0
    feature: int = 0
    tab: str = "overview"
    layer: str = ""
    watched: tuple[int, ...] = (0, 1, 2, 3)
    settings: tuple[tuple[str, str], ...] = ()

    def at(self, **change: Any) -> Selection:
        """Return this with some fields changed."""
        return replace(self, **change)

    def with_feature(self, feature: int) -> Selection:
        """Return this with another feature chosen, which is watched from now on; the oldest watched one makes room."""
        if feature in self.watched:
            return replace(self, feature=feature)
        return replace(self, feature=feature, watched=(*self.watched, feature)[-MOST_WATCHED:])

    def setting(self, name: str) -> str | None:
        """What `name` is set to, None where it is not set."""
        return dict(self.settings).get(name)

    def with_setting(self, name: str, value: str | None) -> Selection:
        """Return this with `name` set to `value`; None sets nothing any more."""
        others = {n: v for n, v in self.settings if n != name}
        new = {**others, name: value} if value is not None and len(value) <= _LONGEST else others
        return replace(self, settings=tuple(sorted(new.items())))

    def query(self) -> str:
        """This as the query of a URL."""
        parts = {"run": self.run, "step": self.step, "feature": self.feature, "tab": self.tab}
        layer = {"layer": self.layer} if self.layer else {}
        usual = Selection().with_feature(self.feature).watched
        watched = {"watched": " ".join(map(str, self.watched))} if self.watched != usual else {}
        return urlencode(parts | layer | watched | dict(self.settings))


def from_query(query: str, base: Selection) -> Selection:
    """Return `base` as a URL's query changes it; what it does not know or cannot read is left as it is."""
    given = {name: values[-1] for name, values in parse_qs(query.lstrip("?")).items()}
    change: dict[str, Any] = {name: given[name] for name in ("run", "layer") if name in given}
    change |= {name: int(given[name]) for name in ("step", "feature") if _is_count(given.get(name))}
    change["watched"] = parse_watched(given.get("watched", "")) or base.watched
    if given.get("tab") in TABS:
        change["tab"] = given["tab"]
    chosen = replace(base, **change)
    for name, value in given.items():
        if name.partition(".")[0] in TABS and "." in name:
            chosen = chosen.with_setting(name, value)
    return chosen if "watched" in given else chosen.with_feature(chosen.feature)


def parse_watched(text: str) -> tuple[int, ...]:
    """`0, 5 12-14` as features, at most MOST_WATCHED, what is no number left out."""
    found: list[int] = []
    for word in text.replace(",", " ").split():
        first, dash, last = word.partition("-")
        if first.isdigit() and (last.isdigit() if dash else True) and len(first) < 9:
            found += range(int(first), min(int(last) if dash else int(first), int(first) + MOST_WATCHED) + 1)
    return tuple(dict.fromkeys(found))[:MOST_WATCHED]


def _is_count(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) < 16


@dataclass
class History:
    """Undo and redo of what was chosen. Steps in a row are one change: scrubbing leaves one entry."""

    now: Selection
    _past: list[Selection] = field(default_factory=list)
    _future: list[Selection] = field(default_factory=list)
    _scrubbing: bool = False

    def go(self, new: Selection) -> None:
        """Choose `new`."""
        if new == self.now:
            return
        only_step = replace(new, step=self.now.step) == self.now
        if not (only_step and self._scrubbing):
            self._past = [*self._past[-99:], self.now]
        self._scrubbing, self._future, self.now = only_step, [], new

    def undo(self) -> bool:
        """Go back to what was chosen before; False where there is nothing."""
        return self._move(self._past, self._future)

    def redo(self) -> bool:
        """Go forth again; False where there is nothing."""
        return self._move(self._future, self._past)

    @property
    def can_undo(self) -> bool:
        """Whether there is something to go back to."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether something was undone."""
        return bool(self._future)

    def _move(self, source: list[Selection], target: list[Selection]) -> bool:
        if not source:
            return False
        target.append(self.now)
        self.now, self._scrubbing = source.pop(), False
        return True
