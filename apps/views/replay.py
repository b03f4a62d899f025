"""The tab Replay: run the chosen step again, here and now, and say whether every bit is the same (C3). Room: apps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn

import replay
from apps.pictures import plain
from apps.pilot import Peeked
from apps.surfaces import Replayer
from apps.trust import check
from apps.views.activity import COLUMNS, activity, by_loss
from replay.activations import Watched
from replay.verify import keep
from tracer.errors import RewindError

if TYPE_CHECKING:
    from apps.recorded import Recorded
    from apps.views.view import Host


@dataclass(frozen=True)
class Rerun:
    """What a re-execution gave: its verdict, what it captured, the gradients it left, the states around it, what was seen inside."""

    verdict: Any
    seconds: float
    captures: dict[str, Any]
    grads: dict[str, Any]
    held_back: list[str]
    states: dict[int, dict[str, Any]]
    notes: list[str]
    batch: Any = None
    """None where the trace has it."""
    watched: Watched = field(default_factory=Watched)


def rerun(session: Any, k: int) -> Rerun:
    """Run step `k` again. Raise ReplayError, StepError."""
    started = time.perf_counter()
    session.seek(k)
    before = dict(session.state)
    batch = session.batch if session.trace.made_for(k) else None
    verdict = session.step(watch=True)
    seconds = time.perf_counter() - started
    states = {k: before, k + 1: dict(session.state)}
    notes = keep(session.trace, [verdict], way="app")
    given = (session.captures, session.grads, session.held_back)
    return Rerun(verdict, seconds, *given, states, notes, batch, session.watched)


def rerun_frame(found: Rerun) -> dict[str, Any]:
    """What the page says of a re-execution."""
    return {
        "verdict": found.verdict.as_dict(),
        "notes": found.notes,
        "took": f"in {found.seconds * 1000:.0f} ms, from the nearest keyframe",
        "captures": [(key, described(value)) for key, value in found.captures.items()],
        "grads": [(name, f"norm {float(value.float().norm()):.4g}") for name, value in found.grads.items()],
        "held_back": [(path, "") for path in found.held_back],
        "activations": {"columns": COLUMNS, "rows": activity(found.watched.activations)},
        "sample_losses": by_loss(found.watched.sample_losses),
        "left_out": found.watched.left_out,
    }


def described(value: Any) -> str:
    """A tensor in a few words: its shape, mean and extremes."""
    array = np.asarray(value.float() if hasattr(value, "float") else value, np.float64)
    if not array.size:
        return f"{list(array.shape)}"
    if array.ndim == 0:
        return f"{float(array):.6g}"
    return f"{list(array.shape)}  mean {array.mean():.4g}  min {array.min():.4g}  max {array.max():.4g}"


class ReplayView:
    """A button, the verdict, and what came out."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._panel = Replayer(self._heard)
        self.root = pn.Column(self._panel, sizing_mode="stretch_width")
        self._session: Any = None
        self._run: Recorded | None = None
        self._anyway = False
        self._past: list[tuple[int, str]] = []
        self._busy = False
        self._last: Rerun | None = None

    def show(self) -> None:
        """Say which step would be run; what was found of another stays."""
        run = self._host.run
        self._turn_to(run)
        impossible = None if run.replayable else _IMPOSSIBLE
        if not self._busy:
            self._say({"impossible": impossible})

    def _turn_to(self, run: Recorded) -> None:
        if run is not self._run:
            self._run, self._past, self._last = run, [], None

    def restyle(self) -> None:
        """Its colours are the page's own."""

    def close(self) -> None:
        """End the program."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def export(self) -> dict[str, Any]:
        """What the last re-execution gave: what there is as a table, the tensors themselves for .npz."""
        if self._last is None:
            return {}
        seen = self._last.watched
        kinds = {"capture": self._last.captures, "gradient": self._last.grads}
        kinds |= {"activation": seen.activations, "sample_loss": seen.sample_losses}
        named = [(kind, name, np.asarray(plain(t))) for kind, of in kinds.items() for name, t in of.items()]
        table = {"kind": np.array([k for k, _, _ in named]), "name": np.array([n for _, n, _ in named])}
        table["norm"] = np.array([float(np.linalg.norm(np.abs(v).astype(np.float64))) for _, _, v in named])
        return {**table, **{f"{kind}/{name}": np.atleast_2d(value) for kind, name, value in named}} if named else {}

    def python(self) -> str:
        """How a notebook does the same."""
        k = self._host.selection.step
        return f"from replay import Session\nwith Session(trace) as session:\n    session.seek({k})\n    session.step()"

    def _say(self, frame: dict[str, Any]) -> None:
        run = self._host.run
        proof = {**run.proof.as_dict(), "whole": run.proof.whole} if run.replayable else {"words": "none"}
        self._panel.send({"step": self._host.selection.step, "past": self._past[-40:][::-1], "proof": proof, **frame})

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("do") == "go":
            self._host.choose(step=message.get("step"))
        elif message.get("do") == "anyway":
            self._anyway = bool(message.get("value"))
            self._host.aside(self.close, lambda _: None)
        elif message.get("do") == "replay":
            self.start({"back": -1, "forward": 1}.get(str(message.get("action")), 0))

    def start(self, way: int = 0) -> None:
        """Run the chosen step again, or the one before or after it; what it gives is then there for all tabs."""
        if self._busy:
            return
        run = self._host.run
        k = min(max(self._host.selection.step + way, run.first), run.last)
        if way:
            self._host.choose(step=k)
        self._busy = True
        self._say({"busy": f"re-executing step {k}: the program starts, which takes some seconds the first time …"})
        self._host.aside(lambda: self._work(run, k), lambda found: self._done(run, found))

    def _work(self, run: Recorded, k: int) -> Rerun:
        if self._session is None or self._session.trace.path != run.trace.path:
            self.close()
            check(run.trace.path, how="start the app with `rewind app --trust`")
            self._session = replay.Session(run.trace.path, anyway=self._anyway)
        return rerun(self._session, k)

    def _done(self, run: Recorded, found: Rerun | RewindError) -> None:
        self._busy = False
        if isinstance(found, RewindError):
            if self._host.selection.tab != "replay":
                self._host.choose(tab="replay")
            self._say({"problem": str(found)})
            return
        self._turn_to(run)  # Asked for on another tab, perhaps: this one was not looked at yet.
        k, verdict = found.verdict.step, found.verdict.kind
        if found.notes:
            run.tell_verdict(k, verdict)
        told = Peeked(k, grads=found.grads, captures=found.captures, batch=found.batch)
        run.keep_rerun(k, verdict, found.states, told)
        self._past.append((k, verdict))
        self._last = found
        self._host.choose()
        self._say(rerun_frame(found))


_IMPOSSIBLE = (
    "This trace cannot be replayed: it has no keyframe, or was recorded at detail metrics. "
    "Record with --detail replay (the default)."
)
