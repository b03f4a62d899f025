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
    """What is noted at the end of a step; nothing of it changes any more but what is said late."""

    step: int
    session: int
    mode: str
    interrupted: bool
    kept: bool
    batch_index: int | None
    size: int | None
    loss: float | None
    time: float
    duration: float
    fingerprint: str
    hashes: list[int]
    layout: Layout
    now: OpenStep
    fetched: Taken
    epoch: int | None
    weights: list[Any] | None = None
    grads: bool = False
    summed: bool = True

    def record(self) -> tuple[dict[str, Any], list[Section]]:
        """Return the header and the sections of its record."""
        now = self.now
        sections: list[Section] = []
        header: dict[str, Any] = {
            "kind": "unfinished" if self.interrupted else "step",
            "step": self.step,
            "session": self.session,
            "mode": self.mode,
            "kept": self.kept,
            "epoch": self.epoch,
            "batch_index": self.batch_index,
            "batch_size": self.size,
            "loss": self.loss,
            "lr": now.lr,
            "grad_norm": now.norm(),
            "time": self.time,
            "duration": self.duration,
            "fingerprint": self.fingerprint,
            "layout": self.layout.id,
            "hashes": self.hashes,
            "rng_hash": now.rng_hash,
            "logs": now.scalars(),
            "captures": [],
        }
        if now.changes:
            header["set"] = now.changes
        if now.site is not None:
            header["site"] = now.site
        header |= self.fetched.header(sections)
        if self.kept:
            self._add_kept(header, sections)
        return header, sections

    def _add_kept(self, header: dict[str, Any], sections: list[Section]) -> None:
        for i, (what, data) in enumerate(self.now.captures.values()):
            header["captures"].append(what)
            sections.append((f"capture{i}", [data], checksum([data])))
        if self.weights is not None:
            sections.append(("weights", self.weights, None))
        if self.grads:
            grads = pack_grads(self.now.grads, self.layout)
            # What a flight recorder lets go of is never summed: it does so when it writes.
            sections.append(("grads", grads, checksum(grads) if self.summed else None))
