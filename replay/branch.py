"""A branch: from state k of a trace, change something and run on; what happens then is a trace of its own. # B4

Room: replay. May touch: one engine; the new trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay.beyond import way_through_entry
from replay.branching import line_map
from replay.session import Session
from replay.timeline import span_of
from tracer import values
from tracer.errors import ReplayError, StepError, UsageError
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from replay.verdict import Verdict


@dataclass(frozen=True)
class Branch:
    """A branch at `path`: `steps` steps from state `at` of `parent`. `control` is the verdict on the parent's own
    first step.

    `note` says why it is shorter than was wished, where it is.
    """

    path: Path
    parent: Path
    at: int
    steps: int
    change: dict[str, Any]
    control: Verdict
    note: str | None = None

    def open(self) -> Trace:
        """Open the branch."""
        return open_trace(self.path)


def branch(
    trace: Trace | str | Path,
    out: str | Path,
    *,
    at: int,
    set: Mapping[str, Any] | None = None,
    steps: int | None = None,
    seed: int | None = None,
    script: str | Path | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    program: Callable[[], Any] | None = None,
    anyway: bool = False,
) -> Branch:
    """Run on from state `at` of `trace`, changed, on the recorded batches, and record it into a new trace at `out`.

    `set`: {name: new value, or "0.5x"}, of optimizer options, attributes and variables. `steps`: how many (default:
    all that were recorded from there; past them on the loader's own batches, for as long as the program runs, where it
    can be shown that the loader stands where the parent's stood; `note` says so where it can not). `script`: run this
    source in the program's place, from a keyframe. `tensors`: replace these. First one step is re-executed unchanged:
    unless it is the recorded one, to the last bit, nothing is branched (`anyway` goes on). Raise StepError,
    NameUnknownError, UsageError (also where the changed program makes no step), ReplayError.
    """
    target = Path(out).resolve()
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{out} exists already: nothing was overwritten; choose another", path=out)
    with _Brancher(trace, target, script, program=program, anyway=anyway) as session:
        count = session.allowed(at, steps)
        control = session.control(at, anyway=anyway)
        change = _told(dict(set or {}), seed, script, tensors)
        target.parent.mkdir(parents=True, exist_ok=True)
        end, note = session.run_on(
            at, count, change=change, settings=dict(set or {}), seed=seed, tensors=dict(tensors or {})
        )
        if end == at:
            raise UsageError(f"the branch at state {at} made no step, nothing was written: {note}", step=at)
        return Branch(target, session.trace.path, at, end - at, change, control, note)


def _told(
    change: dict[str, Any], seed: int | None, script: str | Path | None, tensors: Mapping[str, torch.Tensor] | None
) -> dict[str, Any]:
    """The change as `branches` shows it."""
    told = dict(change)
    if seed is not None:
        told["seed"] = seed
    if script is not None:
        told["script"] = Path(script).name
    if tensors:
        told["tensors"] = sorted(tensors)
    return told


class _Brancher(Session):
    """A session whose engine can record."""

    def __init__(
        self,
        trace: Trace | str | Path,
        out: Path,
        script: str | Path | None,
        *,
        program: Callable[[], Any] | None,
        anyway: bool,
    ) -> None:
        super().__init__(trace, program=program, anyway=anyway)
        self._out, self._beyond = out, False
        self._script = None if script is None else Path(script).resolve()
        self._engine_options = {"kind": "branching", "writable": [str(out)]}
        if self._script is not None:
            if not self._script.is_file():
                raise UsageError(f"no such script: {script}", path=script)
            self._engine_options["script"] = str(self._script)

    def allowed(self, at: int, steps: int | None) -> int:
        """How many steps the branch has. Raise StepError."""
        self._must_exist(at)
        if self._script is not None and at not in self.trace.keyframes:
            # On the way from a keyframe to a later state the other script would run already.
            near = sorted(sorted(self.trace.keyframes, key=lambda k: abs(k - at))[:3])
            raise StepError(f"another script can start at a keyframe only; near {at} there are {near}", step=at)
        most = self.trace.steps - at
        if most < 1 or (steps is not None and steps < 1):
            wanted = "" if steps is None else f", not {steps} steps"
            raise StepError(f"a branch begins with a recorded step: from state {at} there are {most}{wanted}", step=at)
        return most if steps is None else steps

    def control(self, at: int, *, anyway: bool) -> Verdict:
        """Re-execute step `at` unchanged. Raise ReplayError unless it is the recorded one."""
        if self._script is None:
            verdict = self.seek(at).step()
        else:
            with Session(self.trace, program=self._program, anyway=anyway) as unchanged:
                verdict = unchanged.seek(at).step()
        if not verdict.verified and not anyway:
            raise ReplayError(
                f"step {at} does not re-execute as it was recorded ({verdict.detail}; {verdict.cause}):"
                " a branch from there would mix that difference with the change",
                step=at,
            )
        return verdict

    def _start(self, session: int, *, hurry: bool, stay: bool) -> None:
        super()._start(session, hurry=hurry, stay=stay)
        if self._beyond:
            self._ask({"do": "beyond"})
        path = self.trace.manifest.program.path
        if self._script is not None and path is not None:
            old = (self._past.source(path) or b"").decode(errors="replace")
            lines = line_map(old, self._script.read_text(errors="replace"))
            self._ask({"do": "lines", "lines": {Path(path).name: lines}})

    def _set_out_beyond(self, at: int) -> None:
        """Go to state `at` so that the loader's own iterator is beside the recorded batches when they end."""
        self._stop()
        self._beyond = True
        span = span_of(at, self._spans)
        if self._script is None and span == self._spans[-1]:
            message = self._go(way_through_entry(self.trace, at, span, self._keyframes()))
            if message["chain"]:
                self._at = self.position = at
                return
            # What runs between two loops is not exact here: from a keyframe on it is, and the loader stands elsewhere.
            self._stop()
            self._beyond = False
        self.seek(at)

    def run_on(
        self,
        at: int,
        count: int,
        *,
        change: dict[str, Any],
        settings: dict[str, Any],
        seed: int | None,
        tensors: dict[str, torch.Tensor],
    ) -> tuple[int, str | None]:
        """Branch at state `at`; return the state it came to, and why it ended before its time."""
        if at + count > self.trace.steps:
            self._set_out_beyond(at)
        else:
            self.seek(at)
        buffers: list[bytes | memoryview] = []
        node = values.encode(tensors, buffers)
        message = {
            "do": "branch",
            "out": str(self._out),
            "steps": count,
            "change": change,
            "set": settings,
            "seed": seed,
            "tensors": node,
            "script": None if self._script is None else str(self._script),
        }
        assert self._engine is not None
        self._engine.channel.send(message, [bytes(b) for b in buffers])
        try:
            reply, _ = self._engine.channel.receive()
        except (EOFError, ConnectionResetError):
            reply = {"error": "branch", "detail": f"the program's process died: {self._engine.last_words()}"}
        if "error" in reply:
            raise UsageError(f"the branch at state {at}: {reply['detail']}", step=at)
        return int(reply["at"]), reply.get("ended")
