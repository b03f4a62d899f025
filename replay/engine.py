"""The engine: a program under replay. The step boundary of the recorder, with the past put in place of the new.

At a boundary the engine waits for a command; `seek` puts a keyframe in place and lets the program run forward on recorded batches,
`step` lets it run one. Whatever the program does between boundaries is its own code.

Room: replay. May touch: the program's state, at a boundary; writes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from replay.judge import Judge
from replay.patterns import Patterns
from replay.remade import Remade
from tracer import frames, hyperparameters, keyframe, kinds, registry, rng, values, walk
from tracer.boundary import Boundary
from tracer.optimizers import Optimizers, all_living
from tracer.past import Past
from tracer.sections import OpenStep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from replay.causes import Context
    from replay.channel import Channel, Message
    from replay.sandbox import Sandbox
    from replay.timeline import Span
    from replay.verdict import Verdict
    from tracer.trace import Trace

NATIVE, LEAVE, EXECUTE, WAIT = "native", "leave", "execute", "wait"
TRAILING, SKIPPED = "trailing", "skipped"
WASTED = 64  # Batches taken one after the other by a loop that trains on none: it is another than the recorded one.


class StopProgram(BaseException):
    """Unwinds the program when the engine is closed."""


@dataclass
class Target:
    """Where the program is to go: state `k`, from `keyframe` if it is not None and not yet `restored`; then `more` steps."""

    k: int
    keyframe: int | None
    restored: bool
    kind: str
    more: int = 0


@dataclass
class _Trip:
    """What happened on the way from the end of one step to the next: is the loop left, how many fetches were handed out."""

    left: bool = False
    foreign: int = 0
    trailing: int = 0
    skipped: int = 0
    native: bool = False
    wasted: int = 0


class Engine:
    """Receives the points of a step (see `boundary.Steps`) from a program under replay."""

    def __init__(
        self, trace: Trace, channel: Channel, span: Span, context: Context, *, hurry: bool, stay: bool
    ) -> None:
        """`hurry`: loops that are not the wanted one are left early; `stay`: the loop is never left, batches go on coming."""
        self._thread = threading.get_ident()
        self.trace = trace
        self.past = Past(trace)
        self.boundary = Boundary(self)
        self.at: int | None = span.first
        self.captures: dict[str, torch.Tensor] = {}
        self.problems: list[str] = []
        self.sandbox: Sandbox | None = None
        self.registry: registry.Registry | None = None
        self._channel, self._span = channel, span
        self._hurry, self._stay = hurry, stay
        self._judge = Judge(self.past, context)
        self.remade, self._patterns = Remade(self.past), Patterns()
        self._reader: registry.StateReader | None = None
        self._optimizers = Optimizers()
        self._hidden = False
        self._layout: int | None = None
        self._target: Target | None = None
        self._verdicts: list[dict[str, Any]] = []
        self._fresh = True
        self._executing = False
        self._placed = False
        self._by_loader = False
        self._trip = _Trip()
        self.verdict: Verdict | None = None
        self._natively_trained = 0
        self._changed: int | None = None
        self._now, self._extra = OpenStep(), 0
        self._handlers: dict[str, Callable[[Message, list[bytes]], None]] = {
            "seek": self._on_seek,
            "step": self._on_step,
            "state": self._on_state,
            "captures": self._on_captures,
            "grads": self._on_grads,
            "batch": self._on_batch,
            "close": self._on_close,
        }

    @property
    def replaying(self) -> bool:
        """Whether the caller is the program under replay: its own `tracer.record` then records nothing."""
        return threading.get_ident() == self._thread

    # -- commands ------------------------------------------------------------------------------------------------------

    def prelude(self) -> None:
        """Serve commands before the program starts; return when one needs it to run."""
        while self._target is None:
            self._serve()

    def _serve(self) -> None:
        """Wait for one command and obey it."""
        try:
            message, parts = self._channel.receive()
        except EOFError:
            raise StopProgram from None
        self._handlers[message["do"]](message, parts)

    def _on_seek(self, message: Message, parts: list[bytes]) -> None:
        k, start = int(message["k"]), message["keyframe"]
        if self.at == k and (start is None or start == self.at) and not self._started_wrong(start):
            self._reply_arrived()
            return
        here = start is None or (start == self.at and not self._started_wrong(start))
        self._target = Target(k, start, restored=here, kind="seek")

    def _started_wrong(self, start: int | None) -> bool:
        """Whether state `at` is not to be taken as it is: the program has not run yet, or it is what a step left that diverged."""
        if start is None or (self._fresh and self.registry is None):
            return start is not None
        return not self._judge.chain and start in self.past.keyframes

    def _on_step(self, message: Message, parts: list[bytes]) -> None:
        assert self.at is not None
        self._verdicts = []
        self._target = Target(self.at + 1, None, restored=True, kind="step", more=int(message.get("count", 1)) - 1)

    def _on_close(self, message: Message, parts: list[bytes]) -> None:
        self._channel.send({"ok": True})
        raise StopProgram

    def _on_state(self, message: Message, parts: list[bytes]) -> None:
        if self._reader is None:
            self._channel.send({"missing": "the program has not run yet"})
            return
        fingerprint, _ = self._reader.fingerprint()
        packed = b"".join(self._reader.packed())
        self._channel.send(
            {"layout": self._reader.layout.header(), "fingerprint": fingerprint, "at": self.at}, [packed]
        )

    def _on_captures(self, message: Message, parts: list[bytes]) -> None:
        self._send_tensors(self.captures)

    def _on_grads(self, message: Message, parts: list[bytes]) -> None:
        found = self.registry.tensors.items() if self.registry else ()
        self._send_tensors({name: t.grad for name, t in found if t.grad is not None})

    def _on_batch(self, message: Message, parts: list[bytes]) -> None:
        """Send batches made again, for the step that is next; a program that has not run yet runs to where they can be."""
        assert self.at is not None
        if self.boundary.fetching is None:
            self._target = Target(self.at, None, restored=True, kind="seek")
            return
        batches, problem = self.remade.shown(self.at, message["of"], self.boundary.fetching)
        self._send_tensors(batches, problem=problem)

    def _send_tensors(self, tensors: Any, **more: Any) -> None:
        buffers: list[bytes | memoryview] = []
        node = values.encode(tensors, buffers)
        self._channel.send({"value": node, **more}, [bytes(b) for b in buffers])

    def _reply_arrived(self) -> None:
        self._target = None
        self._channel.send({"at": self.at, "chain": self._judge.chain, "problems": self.problems})

    # -- the boundary --------------------------------------------------------------------------------------------------

    def fetch(self, native: Callable[[], Any], *, extra: bool, same_iterator: bool) -> Any:
        """Give the program the recorded batch, its own, or the end of its loop."""
        if extra:
            return self._fetch_extra(native)
        stack = frames.user_frames(sys._getframe(2))
        while True:
            move = self._decide(stack, same_iterator)
            if move == WAIT:
                self._serve()
            elif move == LEAVE:
                raise StopIteration
            elif move == NATIVE:
                return native()
            elif move in (TRAILING, SKIPPED):
                return self._hand_out(move)
            else:
                return self._enter(native)

    def _decide(self, stack: list[frames.UserFrame], same_iterator: bool) -> str:
        if self._target is None:
            return WAIT
        if not self._target.restored:
            return self._try_restore(stack, inner=True) or self._pass_by(same_iterator)
        if self.at is None:
            return NATIVE
        if self._target.kind == "seek" and self.at == self._target.k:
            self._reply_arrived()
            return WAIT
        lost = self._stay and self._trip.wasted > WASTED
        return LEAVE if lost else self._follow(stack, same_iterator)

    def _pass_by(self, same_iterator: bool) -> str:
        """This is not the place of the keyframe: one native step of a loop, then on to the next place."""
        if self._hurry and same_iterator and self._natively_trained:
            self._natively_trained = 0
            return LEAVE
        return NATIVE

    def _follow(self, stack: list[frames.UserFrame], same_iterator: bool) -> str:
        """The program runs forward from a known state: is this fetch that of the next recorded step?"""
        assert self.at is not None
        if self._placed:
            return EXECUTE
        record = self.past.record(self.at)
        trip = self._trip
        if record is None or record["mode"] != "loader":
            trip.native = trip.native or record is None or not (same_iterator and self._by_loader)
            if trip.native:
                return NATIVE
            # A loader that is asked ahead came to its end here, with its last batches still to be trained on.
            return SKIPPED if trip.skipped < len(record.get(SKIPPED, ())) else LEAVE
        if same_iterator and record["left"] and not trip.left and not self._stay:
            if trip.trailing < len(record.get(TRAILING, ())):
                return TRAILING
            return EXECUTE if self._put_here(stack) else LEAVE
        if not same_iterator and record["left"] and self._is_foreign(record, stack):
            return NATIVE
        if record["left"] and not trip.left and not same_iterator and self._put_here(stack):
            return EXECUTE  # The loop before could not stand for this one: it had other data, or other tensors.
        trip.left = True
        return SKIPPED if trip.skipped < len(record.get(SKIPPED, ())) else EXECUTE

    def _put_here(self, stack: list[frames.UserFrame]) -> bool:
        """Put the keyframe of the step that is next in place, where there is one and this is its place; return whether."""
        assert self.at is not None
        if self.at not in self.past.keyframes or not self._fits(self.at, stack, inner=True):
            return False
        self._restore(self.at, stack)
        return True

    def _is_foreign(self, record: dict[str, Any], stack: list[frames.UserFrame]) -> bool:
        site = record.get("site")
        places = [site, *(fetch.get("site") for fetch in record.get(SKIPPED, ()))]
        here = frames.site_of(stack)
        if site is not None and not any(frames.same_place(place, here) for place in places if place is not None):
            return True
        if self._trip.foreign < record.get("discarded", 0):
            self._trip.foreign += 1
            return True
        return False

    def _hand_out(self, name: str) -> Any:
        """A batch that the recorded loop fetched and did not train on."""
        assert self.at is not None
        index = getattr(self._trip, name)
        setattr(self._trip, name, index + 1)
        found, state = self.past.fetched(self.at, name, index)
        return self._handed(found, state)

    def _handed(self, found: Any, state: dict[str, Any] | None) -> Any:
        batch = self.remade.real(found, self.boundary.fetching)
        if state is not None:
            rng.restore_state(state)
        return batch

    def _enter(self, native: Callable[[], Any]) -> Any:
        """Begin step `at`: its batch and, where the fetch had moved them, its random generators."""
        assert self.at is not None
        self._executing, self._placed = True, False
        self._extra = 0
        record = self.past.record(self.at)
        assert record is not None
        batch = self.remade.batch(self.at, self.boundary.fetching) if "made" in record else self._stored(record, native)
        state = self.past.rng(self.at)
        if state is not None:
            rng.restore_state(state)
        return batch

    def _stored(self, record: dict[str, Any], native: Callable[[], Any]) -> Any:
        assert self.at is not None
        template = self._patterns.of(record["batch"], native)
        return self.past.batch(self.at, template)

    def _fetch_extra(self, native: Callable[[], Any]) -> Any:
        record = self.past.record(self.at) if self._executing and self.at is not None else None
        if record is None or self._extra >= len(record.get("extras", ())):
            return native()
        index, self._extra = self._extra, self._extra + 1
        return self._handed(*self.past.fetched(self.at, "extras", index))

    def begin(self, batch: Any, *, left: bool, iterator: Any) -> None:
        """The program has its batch."""
        self._now, self.captures = OpenStep(), {}
        if self._reader is None and self._executing:
            self._look(frames.user_frames(sys._getframe(2)))

    def discard(self) -> None:
        """The fetch was no step."""
        self._trip.wasted += self._executing

    def forward(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Watched for nothing here."""

    def backward(self, losses: tuple[Any, ...]) -> None:
        """Keep the losses, as the recorder does."""
        self._now.note_losses(losses, in_optimizer=self.boundary.in_optimizer)

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None:
        """Where the run was paused and hyperparameters were changed, they are changed again; else they are the program's own."""
        self._optimizers.add(optimizer)
        following = self._executing or (self._target is not None and self._target.restored)
        if self.at is None or not following or self._changed == self.at:
            return
        self._changed = self.at
        changes = (self.past.record(self.at) or {}).get("set")
        if changes:
            if self.registry is None:
                self._look(frames.user_frames(sys._getframe(2)))
            assert self.registry is not None
            hyperparameters.apply(self.registry.optimizers, changes)

    def optimizer_post(self, optimizer: torch.optim.Optimizer) -> None:
        """Count what was trained on the way to the wanted place."""
        self._natively_trained += not self._executing

    def end(self, *, mode: str, interrupted: bool = False) -> None:
        """A step is over: judge it, and wait for what is next."""
        frame = sys._getframe(1)
        expected = self.past.record(self.at) if self.at is not None else None
        if self._target is not None and self._target.restored and expected is not None and expected["mode"] == mode:
            self._judge_step(frame)
        elif self._target is not None and self._target.restored:
            self.at = None if self._executing else self.at
        self._fresh = self._executing = False
        self._by_loader = mode == "loader"
        self._now, self._trip, self.remade.problem = OpenStep(), _Trip(), None
        if interrupted:
            return
        self._wait_at_end(frame, mode)

    def _judge_step(self, frame: FrameType) -> None:
        assert self.at is not None
        assert self._target is not None
        record = self.past.record(self.at)
        layout = record["layout"] if record is not None else None
        # A walk costs more than a small step: only where the program may have other tensors or optimizers than before.
        if self._reader is None or layout != self._layout or self.at + 1 in self.past.keyframes:
            self._look(frames.user_frames(frame))
        self._layout = layout
        verdict = self.verdict = self._verdict()
        self.at += 1
        if self._target.kind == "step":
            self._verdicts.append(verdict.as_dict())
            if verdict.kind == "verified" and self._target.more:
                self._target = Target(self.at + 1, None, restored=True, kind="step", more=self._target.more - 1)
                return
            self._target = None
            self._channel.send({"verdicts": self._verdicts, "at": self.at})
        elif self.at == self._target.k:
            self._reply_arrived()

    def _verdict(self) -> Verdict:
        assert self.at is not None
        if self.remade.problem is not None:
            return self._judge.fed_wrong(self.at, self.remade.problem)
        problems = self.problems + (self.sandbox.view.doubts if self.sandbox is not None else [])
        return self._judge.step(self.at, self._reader, self.registry, self._now.loss(), problems)

    def _wait_at_end(self, frame: FrameType, mode: str) -> None:
        """Where an optimizer's step is the boundary, the past is put in place here; else at the next fetch."""
        while True:
            if self._target is None:
                self._serve()
            elif self._target.restored or mode != "optimizer" or not self._restored_after(frame):
                return

    def _restored_after(self, frame: FrameType) -> bool:
        return self._try_restore(frames.user_frames(frame), inner=False) is not None

    # -- putting the past in place -------------------------------------------------------------------------------------

    def _try_restore(self, stack: list[frames.UserFrame], *, inner: bool) -> str | None:
        target = self._target
        assert target is not None
        assert target.keyframe is not None
        if not self._fits(target.keyframe, stack, inner=inner):
            return None
        problems = self._restore(target.keyframe, stack)
        if problems and not self._fresh:
            # A program that has just started is in the state of its start: there, more can be put right.
            self._target = None
            self._channel.send({"error": "restart", "problems": problems})
            return WAIT
        target.restored = True
        if self.at == target.k:
            self._reply_arrived()
            return WAIT
        return EXECUTE

    def _fits(self, k: int, stack: list[frames.UserFrame], *, inner: bool) -> bool:
        tree, _ = self.past.keyframe(k)
        if tree["inner"] != inner or not frames.same_place(tree["site"], frames.site_of(stack)):
            return False
        if self._hurry and inner and not self.remade.fits(k, self.boundary.fetching):
            return False
        return self._takes(k, stack)

    def _takes(self, k: int, stack: list[frames.UserFrame]) -> bool:
        """Whether the program has the tensors of keyframe `k`, and things of its kinds."""
        slots, layout = self._look(stack), self.past.keyframe_layout(k)
        if self.registry is not None and keyframe.mismatch(layout, self.registry):
            slots = self._look(stack, hidden=True)
        same = self.registry is not None and not keyframe.mismatch(layout, self.registry)
        return same and not kinds.others(self.past.keyframe(k)[0]["slots"], slots)

    def _restore(self, k: int, stack: list[frames.UserFrame]) -> list[str]:
        tree, read = self.past.keyframe(k)
        slots = self._look(stack)
        assert self.registry is not None
        self._rewind_files(k, tree.get("files"))
        # Made before all else is put back: what a dataset counts, say, is then as the fetch left it.
        self.remade.prepare(k, self.boundary.fetching if tree["inner"] else None)
        self.problems = keyframe.restore(tree, read, self.past.keyframe_layout(k), slots, self.registry)
        self.boundary.follow(self.registry.optimizers.get(tree.get("leader") or ""))
        self._judge.start()
        self.at, self._placed, self._changed = k, bool(tree["inner"]), None
        return self.problems

    def _rewind_files(self, k: int, position: int | None) -> None:
        """The files are again as they were; not where the program has just come by itself to where it began."""
        if self.sandbox is not None and position is not None and not (self._fresh and k == self._span.first):
            self.sandbox.rewind(position)

    def _look(self, stack: list[frames.UserFrame], *, hidden: bool = False) -> list[walk.Slot]:
        """Walk the program; `hidden`: take in optimizers that no variable leads to."""
        slots = walk.walk(stack)
        if hidden and not self._hidden:
            gc.collect()  # what this process trained before is none of the program's
        self._hidden = self._hidden or hidden
        for optimizer in all_living() if self._hidden else ():
            self._optimizers.add(optimizer)
        self._optimizers.see([slot.value for slot in slots if slot.kind == "optimizer"])
        self.registry = registry.build(slots, self._optimizers.hidden())
        layout = registry.make_layout(self.registry, 0)
        if self._reader is None or layout.digest != self._reader.layout.digest or not self._reader.reads(self.registry):
            self._reader = registry.StateReader(self.registry, layout) if layout.entries else None
        return slots

    # -- what the program gives (tracer.active.Listener) ---------------------------------------------------------------

    def capture(self, key: str, value: Any, dims: Sequence[str] | None) -> None:
        """Keep what the program captures in this step; what cannot be kept was left out of the record, too."""
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
            self.captures[key] = tensor.detach().clone()

    def log(self, scalars: dict[str, Any]) -> None:
        """Logged scalars are recorded already."""

    def progress(self, fields: dict[str, Any]) -> None:
        """A replay has no progress of its own."""

    def finish(self) -> None:
        """The program has come to its end."""
        if self.boundary.open and self.boundary.trained:
            self.boundary.close()

    def ended(self, message: Message) -> None:
        """The program ended or raised: say so to the command that waits, or to the next one."""
        while self._target is None:
            self._serve()
        made = self._verdicts if self._target.kind == "step" else []
        self._channel.send({**message, "at": self.at, "verdicts": made})
