"""A session of replay: go to any step of a trace, run it again, step forward and back. # C3

Room: replay. May touch: one engine at a time (a process, or a thread for a function) and its scratch folder.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.activations import Watched
from replay.causes import Context
from replay.compilations import Compilations
from replay.near_end import NearEnd, ThreadEnd
from replay.ranks import Ranks
from replay.sandbox import held_back
from replay.timeline import Plan, Span, plan
from replay.verdict import Verdict
from tracer import environment, stored, values
from tracer.errors import (
    EnvironmentMismatchError,
    MissingDataError,
    ProgramError,
    ProgramFailedError,
    ReplayError,
    StepError,
    UnreachableStepError,
    UsageError,
)
from tracer.packing import PackedLayout
from tracer.past import Past
from tracer.stored import State
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    import torch

    from replay.branch import Branch
    from replay.channel import Message

_BUNDLE_SECONDS = 0.1


class Session:
    """Replays one trace. `step` is the state the program is at: 0 at first; `verdict` is that of the step run last."""

    def __init__(
        self,
        trace: Trace | str | Path,
        *,
        program: Callable[[], Any] | None = None,
        anyway: bool = False,
        current_source: bool = False,
    ) -> None:
        """Nothing runs yet. `program`: the function that was recorded, where it was no script.

        `anyway`: replay although this machine or its versions differ. `current_source`: run the files as they are on the disk now,
        not as they were recorded. Raise EnvironmentMismatchError, ProgramError, MissingDataError.
        """
        self.trace = trace if isinstance(trace, Trace) else open_trace(trace)
        self._owns = not isinstance(trace, Trace)
        self._past = Past(self.trace)
        self._ranks = Ranks(self.trace)
        self._compilations = Compilations(self._past)
        self._program, self._anyway = program, anyway
        self.context = self._check(anyway, current_source)
        self._spans = spans(self.trace)
        self._engine: NearEnd | None = None
        self._at: int | None = None
        self.position = self.trace.first_step
        self._engine_options: dict[str, Any] = {}
        self.verdict: Verdict | None = None
        self.chain: list[Verdict] = []
        self._watched: Watched | None = None

    def _check(self, anyway: bool, current_source: bool) -> Context:
        facts = self.trace.manifest
        if not self.trace.recorded_steps:
            raise MissingDataError(f"{self.trace.path} has no steps: there is nothing to replay", path=self.trace.path)
        if facts.detail == "metrics":
            raise MissingDataError(
                f"{self.trace.path} cannot be replayed: it was recorded at detail metrics; record with --detail replay",
                path=self.trace.path,
            )
        if self._program is None and facts.program.kind == "block":
            raise ProgramError(f"{self.trace.path} records a block of code, no script: give its function as program=")
        different = environment.differences(facts.environment)
        if different and not anyway:
            said = "; ".join(f"{name}: recorded {a}, here {b}" for name, (a, b) in different.items())
            raise EnvironmentMismatchError(
                f"this is not the recorded environment ({said}): --anyway goes on all the same"
            )
        changed = [p for p in facts.program.sources if _differs(self._past, p)]
        return Context(different, changed, current_source)

    # -- where we are --------------------------------------------------------------------------------------------------

    @property
    def step_number(self) -> int:
        """The state the session is at: the step that would run next."""
        return self.position

    @property
    def state(self) -> State:
        """State `step_number`: what the program has now, or what was stored of it."""
        if self._engine is not None and self._at == self.position:
            message, parts = self._ask({"do": "state"})
            if "layout" in message:
                layout = PackedLayout.of(message["layout"])
                words = np.frombuffer(parts[0], layout.dtype)
                return State(self.position, message["fingerprint"], stored.unpack(layout, words))
        if self.trace.has_state(self.position):
            return self.trace.state(self.position)
        self._travel(self.position)
        return self.state

    @property
    def batch(self) -> Any:
        """The batch of the step that would run next; where it was not stored, made again by the program.

        Raise MissingDataError; ReplayError where the program's dataset now gives another one.
        """
        made = self.trace.made_for(self.position)
        if not made:
            return self.trace.stored_batch(self.position)
        self._travel(self.position)
        found = self._ask({"do": "batch", "of": made})
        message, parts = found if "value" in found[0] else self._ask({"do": "batch", "of": made})
        if message["problem"] is not None:
            raise ReplayError(
                f"the batch of step {self.position} cannot be made again: {message['problem']}", step=self.position
            )
        batches = values.decode(message["value"], parts.__getitem__)
        return batches[0] if len(batches) == 1 else batches

    @property
    def captures(self) -> dict[str, torch.Tensor]:
        """What the program captured in the step run last."""
        return self._tensors("captures")

    @property
    def grads(self) -> dict[str, torch.Tensor]:
        """The gradients that the step run last left in the parameters."""
        return self._tensors("grads")

    @property
    def activations(self) -> dict[str, torch.Tensor]:
        """What each module gave in the step that `step(watch=True)` ran last, by its path. Raise UsageError before one."""
        return self.watched.activations

    @property
    def sample_losses(self) -> dict[str, torch.Tensor]:
        """The loss of each sample in that step, [B], by the name of the function. Raise UsageError before one."""
        return self.watched.sample_losses

    @property
    def watched(self) -> Watched:
        """Both, and what of it was left out. Raise UsageError where the step run last was not watched."""
        if self._watched is None:
            raise UsageError("the step run last was not watched: step(watch=True) keeps what its modules give")
        return self._watched

    def _tensors(self, what: str) -> dict[str, torch.Tensor]:
        if self._engine is None:
            return {}
        message, parts = self._ask({"do": what})
        return values.decode(message["value"], parts.__getitem__)

    @property
    def held_back(self) -> list[str]:
        """The files that the replayed program wrote, and that went to a scratch folder instead of their places."""
        return held_back(self._engine.scratch) if self._engine is not None else []

    # -- moving --------------------------------------------------------------------------------------------------------

    def seek(self, k: int) -> Session:
        """Go to state `k`. Raise StepError; ReplayError where the program cannot be brought there."""
        self._must_exist(k)
        self._travel(k)
        self.position = k
        return self

    def step(self, *, watch: bool = False) -> Verdict:
        """Run the step that is next, again, and return the verdict. Raise StepError past the end, ReplayError.

        `watch`: `activations` and `sample_losses` are then those of this step.
        """
        if self.position >= self.trace.steps:
            raise StepError(
                f"step {self.position} was never recorded: the last is {self.trace.steps - 1}", step=self.position
            )
        return self._steps(1, watch=watch)[0]

    def _steps(self, count: int, *, watch: bool = False) -> list[Verdict]:
        """Run up to `count` steps: fewer where one is not verified, or where the program had to be started again."""
        self._watched = None
        if self._at != self.position:
            self._travel(self.position)
        message = self._retry({"do": "step", "count": count, "watch": watch})
        verdicts = [Verdict(**found) for found in message["verdicts"]]
        self._compilations.ran(self.position, self.position + len(verdicts))
        self._at = self.position = self.position + len(verdicts)
        self.verdict = verdicts[-1]
        if "error" in message:
            self._stop()  # After these the program ended, or raised: the next move starts it again.
        if watch and self._engine is not None:
            self._watched = self._look_back()
        return verdicts

    def _look_back(self) -> Watched:
        message, parts = self._ask({"do": "watched"})
        return Watched(**values.decode(message["value"], parts.__getitem__), left_out=message["left_out"])

    def back(self) -> Session:
        """Go to the state before this one."""
        return self.seek(self.position - 1)

    def run(self, steps: int) -> list[Verdict]:
        """Run `steps` steps and return their verdicts. Raise StepError past the end, ReplayError."""
        return list(self.running(steps))

    def running(self, steps: int) -> Iterator[Verdict]:
        """Run `steps` steps and yield their verdicts, a bundle at a time: the program may be ahead of what was yielded."""
        count = 1
        while steps > 0:
            available = min(steps, self.trace.steps - self.position)
            if available <= 0:
                yield self.step()  # It raises: there is none.
            started = time.perf_counter()
            found = self._steps(min(count, available))
            # As many at a time as take about a tenth of a second: asking for each costs as much as a small step.
            count = max(1, round(len(found) * _BUNDLE_SECONDS / (time.perf_counter() - started)))
            steps -= len(found)
            yield from found

    # -- asking the past -----------------------------------------------------------------------------------------------

    def until(
        self, condition: str | Callable[[Any], Any], *, backward: bool = False, lasting: bool = False
    ) -> int | None:
        """Go to the first step from here on at which `condition` holds, and return it; None (and stay) if there is none.

        `backward`, `lasting` and conditions as in `replay.until`; afterwards `step()` runs that step. Raise UsageError.
        """
        last = self.trace.steps - 1
        if self.position > last and not backward:
            return None
        self._make_room()
        # By name: those modules are made of sessions themselves.
        found = import_module("replay.until").until(
            self.trace,
            condition,
            start=min(self.position, last),
            backward=backward,
            lasting=lasting,
            program=self._program,
            anyway=self._anyway,
        )
        if found is not None:
            self.seek(found)
        return found

    def branch(self, out: str | Path, *, at: int | None = None, **options: Any) -> Branch:
        """Run on from here (or from state `at`), changed, into a new trace at `out`; the session stays where it is.

        Options (set, steps, seed, script, tensors) and errors as in `replay.branch`.
        """
        self._make_room()
        place = self.position if at is None else at
        given = {"program": self._program, "anyway": self._anyway, **options}
        return import_module("replay.branch").branch(self.trace, out, at=place, **given)

    def _make_room(self) -> None:
        """A function is replayed in this very process, where one engine at a time can listen."""
        if self._program is not None:
            self._stop()

    def forget(self) -> None:
        """The program's state is not the recorded one any more: the next move starts from a keyframe."""
        self._at = None

    def _must_exist(self, k: int) -> None:
        if not self.trace.first_step <= k <= self.trace.steps:
            origin = self.trace.manifest.parent
            before = f": before it, replay the parent, {origin.trace}" if origin and k < self.trace.first_step else ""
            there = f"there are {self.trace.first_step} to {self.trace.steps}"
            raise StepError(f"{self.trace.path}: no state {k} to replay; {there}{before}", step=k)

    def _travel(self, k: int) -> None:
        way = plan(k, self._keyframes(), self._spans, at=self._at)
        if way.keyframe is not None and way.keyframe != self._at and self._compilations.steps:
            self._compile_as_then(way.keyframe)
        message = self._go(way)
        self._at = self.position = int(message["at"])

    def _compile_as_then(self, start: int) -> None:
        """Before state `start` is put in place, the program is to have compiled what the run had."""
        if self._compilations.beyond(start):
            self._stop()
        for step in self._compilations.missing(start):
            self._go(plan(step, self._keyframes(), self._spans))
            self._ask({"do": "step", "count": 1}, raises=False)
            self._compilations.ran(step, step + 1)

    def _keyframes(self) -> list[int]:
        """The keyframes that a program can be put to: with an iterator whose place cannot be set, only its natural start."""
        found = self.trace.keyframes
        if found and not self._past.keyframe(found[-1])[0].get("placeable", True):
            return []
        return self._ranks.common(found)

    def _go(self, way: Plan, attempt: int = 0) -> Message:
        """Send the engine on `way`; start a new one where the program must begin afresh, each time with a little more patience."""
        fresh = way.keyframe is None or self._engine is None or self._engine.session != way.session
        if fresh or attempt:
            self._start(way.session, hurry=attempt < 2, stay=attempt > 2)
        message, _ = self._ask({"do": "seek", "k": way.k, "keyframe": way.keyframe}, raises=False)
        if "error" not in message:
            self._compilations.ran(way.k - way.forward, way.k)
            return message
        self._stop()
        if attempt >= 3:
            raise _failure(message, way.k, _in_a_thread(self.trace, way.k))
        again = plan(way.k, self._keyframes(), self._spans)
        return self._go(again, attempt + 1)

    def _retry(self, command: Message) -> Message:
        """Ask for a step; a program that ended before it is started again, once, and brought here from a keyframe."""
        message, _ = self._ask(command, raises=False)
        if "error" not in message or message.get("verdicts"):
            return message
        k = self.position
        self._stop()
        for attempt in (1, 3):
            self._at = int(self._go(plan(k, self._keyframes(), self._spans), attempt)["at"])
            message, _ = self._ask(command, raises=False)
            if "error" not in message:
                return message
            self._stop()
        raise _failure(message, k, _in_a_thread(self.trace, k))

    # -- the engine ----------------------------------------------------------------------------------------------------

    def _start(self, session: int, *, hurry: bool, stay: bool) -> None:
        self._stop()
        span = next(s for s in self._spans if s.session == session)
        options = {**vars(span), "hurry": hurry, "stay": stay, "context": asdict(self.context), **self._engine_options}
        make = ThreadEnd if self._program is not None else self._ranks.start
        self._engine = make(self.trace, options, self._program)
        self._at = None

    def _ask(self, message: Message, *, raises: bool = True) -> tuple[Message, list[bytes]]:
        assert self._engine is not None
        try:
            reply, parts = self._engine.ask(message)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            reply, parts = {"error": "died", "detail": self._engine.last_words()}, []
        if raises and "error" in reply:
            raise _failure(reply, self.position, _in_a_thread(self.trace, self.position))
        return reply, parts

    def _stop(self) -> None:
        engine, self._engine, self._at = self._engine, None, None
        self._compilations.afresh()
        if engine is not None:
            engine.close()

    def close(self) -> None:
        """End the program and remove its scratch folder."""
        self._stop()
        self._ranks.close()
        if self._owns:
            self.trace.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def spans(trace: Trace) -> list[Span]:
    """Return the steps of each session that count, in order."""
    starts = [(s.session, s.first_step) for s in trace.sessions]
    ends = [first for _, first in starts[1:]] + [trace.steps]
    return [Span(number, first, max(first, end)) for (number, first), end in zip(starts, ends, strict=True)]


def _differs(past: Past, path: str) -> bool:
    try:
        return Path(path).read_bytes() != past.source(path)
    except OSError:
        return True


def _failure(message: Message, k: int, elsewhere: str = "") -> ReplayError:
    """`elsewhere`: what is known of where the step ran."""
    detail = str(message.get("detail", "")).strip()
    if message["error"] == "raised":
        return ProgramFailedError(f"the program raised on its way to step {k}: {detail}", step=k)
    if message["error"] == "died":
        return ProgramFailedError(f"the program's process died on its way to step {k}: {detail}", step=k)
    if message["error"] == "restart":
        return ReplayError(f"state {k} could not be put in place: {message['problems'][0]}", step=k)
    return UnreachableStepError(f"the program never came to the place of step {k} ({detail}{elsewhere})", step=k)


def _in_a_thread(trace: Trace, k: int) -> str:
    """Said of a step whose stack did not begin with the script: only the program's main thread is followed by a replay."""
    frames = [trace.keyframe_at_or_before(k), *trace.keyframes[:1]]
    frame = next((f for f in frames if f is not None), None)
    site = trace.keyframe(frame)[0]["site"][0] if frame is not None else []
    alone = trace.manifest.program.kind != "block" and len(site) > 1 and site[1] != "<module>"
    return (
        f"; it was trained in {site[1]}, a thread of its own: a replay follows the main thread alone" if alone else ""
    )
