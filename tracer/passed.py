"""A step that is over, until what is said late of it is said too; then its record. Room: tracer. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer.sections import OpenStep, Section, pack_grads
from tracer.tail import checksum

if TYPE_CHECKING:
    from tracer.fetches import Taken
    from tracer.registry import Layout


@dataclass(slots=True)
class Passed:
    """A step at its end: the header of its record but for what may be said late, and what its sections are made of."""

    header: dict[str, Any]
    now: OpenStep
    fetched: Taken
    layout: Layout
    weights: list[Any] | None = None
    grads: bool = False
    summed: bool = True

    def record(self) -> tuple[dict[str, Any], list[Section]]:
        """Return the header and the sections of its record."""
        now, header = self.now, self.header
        sections: list[Section] = []
        header["logs"] = now.scalars()
        header["captures"] = []
        if now.changes:
            header["set"] = now.changes
        if now.site is not None:
            header["site"] = now.site
        header |= self.fetched.header(sections)
        if header["kept"]:
            self._add_kept(sections)
        return header, sections

    def _add_kept(self, sections: list[Section]) -> None:
        for i, (what, data) in enumerate(self.now.captures.values()):
            self.header["captures"].append(what)
            sections.append((f"capture{i}", [data], checksum([data])))
        if self.weights is not None:
            sections.append(("weights", self.weights, None))
        if self.grads:
            grads = pack_grads(self.now.grads, self.layout)
            # What a flight recorder lets go of is never summed: it does so when it writes.
            sections.append(("grads", grads, checksum(grads) if self.summed else None))
