"""Compares a re-executed step with the recorded one. Room: replay. Reads the program; changes nothing."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from replay.causes import Context, likely_cause
from replay.verdict import Verdict, max_ulp, same_float
from tracer import keyframe

if TYPE_CHECKING:
    from tracer.past import Past
    from tracer.registry import Registry, StateReader


class Judge:
    """Gives the verdict on each step; `chain` says whether the state that the next one starts from is the recorded one."""

    def __init__(self, past: Past, context: Context) -> None:
        """`context`: what is known beforehand that may make a replay differ."""
        self._past = past
        self._trace = past.trace
        self._context = context
        self.chain = True
        self.broken_at: int | None = None

    def start(self) -> None:
        """A recorded state was put in place."""
        self.chain, self.broken_at = True, None

    def step(
        self, k: int, reader: StateReader | None, registry: Registry | None, loss: float | None, problems: list[str]
    ) -> Verdict:
        """Return the verdict on step `k`, which has just run."""
        record = self._past.record(k)
        if record is None or reader is None or registry is None:
            return Verdict("unverifiable", k, detail="this step was cut short while it was recorded")
        if not self.chain:
            return self._unknown(k)
        tensor = self._first_difference(k, record, reader, registry, loss)
        if tensor is None:
            return Verdict("verified", k, detail="bit for bit")
        self.chain, self.broken_at = False, k
        ulp = self._distance(k, tensor, registry, record, loss)
        cause = likely_cause(self._context, problems, self._past, k)
        return Verdict("diverged", k, tensor, ulp, cause, f"{tensor} differs" + (f" by {ulp} ULP" if ulp else ""))

    def fed_wrong(self, k: int, why: str) -> Verdict:
        """Return the verdict on step `k`, which has just run on another batch than the recorded one."""
        if not self.chain:
            return self._unknown(k)
        self.chain, self.broken_at = False, k
        return Verdict("diverged", k, "batch", None, why, "batch differs")

    def _unknown(self, k: int) -> Verdict:
        why = f"it starts from the state that step {self.broken_at} left, which diverged"
        return Verdict("unverifiable", k, detail=why)

    def _first_difference(
        self, k: int, record: dict[str, Any], reader: StateReader, registry: Registry, loss: float | None
    ) -> str | None:
        names, hashes = self._past.names(k), reader.fingerprint()[1]
        if record["hashes"] != hashes or names != reader.names:
            recorded, here = (
                dict(zip(names, record["hashes"], strict=True)),
                dict(zip(reader.names, hashes, strict=True)),
            )
            for name in {**recorded, **here}:
                if recorded.get(name) != here.get(name):
                    return name
        if not same_float(record["loss"], loss):
            return "loss"
        return self._optimizer_difference(k, reader, registry)

    def _optimizer_difference(self, k: int, reader: StateReader, registry: Registry) -> str | None:
        """At a keyframe the optimizer's state is compared, too (elsewhere the next steps would show it)."""
        if k + 1 not in self._past.keyframes:
            return None
        following = self._past.record(k + 1)
        if following is not None and following["left"]:
            return None
        same = self._past.digest(k + 1) == keyframe.digest_now(registry, reader)
        return None if same else "optimizer state"

    def _distance(
        self, k: int, tensor: str, registry: Registry, record: dict[str, Any], loss: float | None
    ) -> int | None:
        if tensor == "loss":
            return None if loss is None or record["loss"] is None else loss_distance(loss, record["loss"])
        live = registry.tensors.get(tensor)
        if live is None or not self._trace.has_state(k + 1):
            return None
        recorded = self._trace.state(k + 1)[tensor]
        if recorded.shape != live.shape or recorded.dtype != live.dtype:
            return None
        return max_ulp(live.detach().cpu(), recorded)


def loss_distance(a: float, b: float) -> int:
    """ULPs between two losses: of float32 where both are float32 numbers, else of float64."""
    single = all(np.isnan(x) or struct.unpack("<f", struct.pack("<f", x))[0] == x for x in (a, b) if abs(x) < 3e38)
    kind = torch.float32 if single else torch.float64
    return max_ulp(torch.tensor([a], dtype=kind), torch.tensor([b], dtype=kind))
