"""The tab Overview: what was recorded, what stands out, and what one asks first, each a click from where it shows (S4.9).

Room: apps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn

from apps.answers import Answer, about, proven_anew, quick_answers
from apps.lookout import Found
from apps.surfaces import Overview

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.views.view import Host


def overview_frame(
    facts: list[tuple[str, str]], found: Found, *, live: bool
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame of the tab: header, and the pictures of the answers in their order."""
    arrays: dict[str, NDArray[Any]] = {}
    shown = []
    for i, one in enumerate(found.answers):
        pictures = [(caption, f"{i}.{j}") for j, (caption, _) in enumerate(one.pictures)]
        arrays |= {f"{i}.{j}": pixels for j, (_, pixels) in enumerate(one.pictures)}
        words = {"question": one.question, "answer": one.answer, "tab": one.go.get("tab", ""), "parts": one.parts}
        shown.append({**words, "pictures": pictures})
    findings = (
        None
        if found.standouts is None
        else [{"kind": one.kind, "words": one.lines, "step": one.step, "advice": one.advice} for one in found.standouts]
    )
    header = {"facts": facts, "answers": shown, "findings": findings, "live": live, "failed": found.problem}
    return header, arrays


class OverviewView:
    """What the run says of itself."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._surface = Overview(self._heard)
        self.root = pn.Column(self._surface, sizing_mode="stretch_width")
        self._shown: tuple[Any, ...] = ()
        self._found = Found()

    def show(self) -> None:
        """Look into the run where that was not done; moving through its steps changes nothing here."""
        run = self._host.run
        place = (run, run.last, self._host.live, run.proof)
        if place == self._shown:
            return
        new = self._shown[:1] != place[:1]
        proven = self._shown[:-1] == place[:-1]
        self._shown = place
        if self._host.live or new:
            self._found = Found(tuple(quick_answers(run)))
        self._found = replace(self._found, answers=proven_anew(self._found.answers, run))
        self._send()
        if not self._host.live and not proven:
            self._host.look(self._arrived)

    def restyle(self) -> None:
        """Pictures that are drawn have the page's colours."""
        self._surface.tell({"kind": "theme"})

    def export(self) -> dict[str, NDArray[Any]]:
        """What stands out, then questions and answers."""
        pairs = [(one.kind, line) for one in self._found.standouts or () for line in one.lines]
        pairs += [(one.question, one.answer) for one in self._found.answers]
        return {"question": np.array([one for one, _ in pairs]), "answer": np.array([one for _, one in pairs])}

    def python(self) -> str:
        """How a notebook gets the same."""
        return (
            "from apps.answers import answers\nfrom apps.doctor import examine\nfrom apps.recorded import Recorded\n\n"
            + ("for one in answers(Recorded(trace)):\n    print(one.question, one.answer)\nexamine(trace)")
        )

    def _arrived(self, found: Found) -> None:
        if self._shown and self._shown[0] is self._host.run:
            self._found = replace(found, answers=proven_anew(found.answers, self._host.run))
            self._send()

    def _send(self) -> None:
        run = self._host.run
        self._surface.send(*overview_frame(about(run), self._found, live=self._host.live))

    def _heard(self, message: dict[str, Any]) -> None:
        do, index = message.get("do"), message.get("index")
        listed = self._found.answers if message.get("of") == "answer" else self._found.standouts or ()
        if do not in ("go", "sql") or not isinstance(index, int) or not 0 <= index < len(listed):
            return
        one = listed[index]
        if isinstance(one, Answer):
            self._go(one.go, one.settings)
        elif do == "sql":
            self._go({"tab": "sql"}, {"sql.query": one.query})
        elif one.step is not None:
            self._go({"tab": "batch", "step": one.step}, {})

    def _go(self, place: dict[str, Any], settings: dict[str, str]) -> None:
        chosen = self._host.selection
        for name, value in settings.items():
            chosen = chosen.with_setting(name, value)
        self._host.choose(**place, settings=chosen.settings)
