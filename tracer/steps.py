"""The recorder's half of the step boundary: from the points of a step to records in the journal.

Room: tracer. May touch: the journal it is given; of the program it changes nothing.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tracer import files, frames, hooks, hyperparameters, keyframe, registry, walk
from tracer.ahead import Ahead
from tracer.batches import BatchEncoder
from tracer.boundary import Boundary
from tracer.errors import UsageError
from tracer.fetches import Fetches
from tracer.gradients import copies, grad_norm
from tracer.journal import Journal
from tracer.making import Making
from tracer.optimizers import Optimizers
from tracer.pace import KeyframePace
from tracer.passed import Passed
from tracer.sections import OpenStep, input_size, model_inputs, same_tensors
from tracer.shield import Shield
from tracer.writing import Writing

if TYPE_CHECKING:
    from tracer.live import Live
    from tracer.options import Options

MAX_INPUTS = 64
"""So many forward calls of one step are kept as its batch (a rollout may have thousands)."""
LARGE_KEYFRAME = 4 << 20
"""From so many bytes on a keyframe is written while the program goes on."""
OpenJournal = Callable[[str], tuple[Journal, int]]


class StepRecorder:
    """Receives the points of a step (see `boundary.Steps`) and writes what they say."""

    def __init__(self, open_journal: OpenJournal, options: Options, session: int) -> None:
        """`open_journal` gives, for the fingerprint of the first state, the journal and the number of the first step."""
        self._open_journal = open_journal
        self._options = options
        self._session = session
        self.boundary = Boundary(self)
        self.shield = Shield(self)
        self.writing = Writing(options.every, session, leave_out=options.slow_disk == "drop")
        self.trained = False
        self._ahead = Ahead()
        self.making = Making()
        self._fetches = Fetches(
            BatchEncoder(options.sample_counts),
            keep=options.replayable,
            making=self.making,
            most=options.batch_bytes,
            room=lambda: self.writing.room,
        )
        self._constants = keyframe.Constants()
        self._pace = KeyframePace(options.keyframe_every)
        self._optimizers = Optimizers()
        self._registry: registry.Registry | None = None
        self._reader: registry.StateReader | None = None
        self._layouts = 0
        self._code_site: Any = None
        self._state: tuple[str, list[int]] | None = None
        self._pending: Passed | None = None
        self._now = OpenStep()
        self._wanted = hooks.Wanted()
        self._unwatch: Callable[[], None] | None = hooks.watch_forward(self.shield, self._wanted)
        self._replayable, self._grads = options.replayable, options.grads
        self._peekable = not options.replayable or options.flight is not None
        self.step = 0
        self._unpassed: dict[str, Any] | None = None
        self.finished: OpenStep | None = None
        self.changes: dict[str, Any] = {}
        self.live: Live | None = None

    # -- the points of a step ------------------------------------------------------------------------------------------

    def fetch(self, native: Callable[[], Any], *, extra: bool, same_iterator: bool) -> Any:
        """Fetch natively, noting what the fetch did to the generators."""
        return self._fetches.fetch(native, extra=extra)

    def begin(self, batch: Any, *, left: bool, iterator: Any) -> None:
        """A DataLoader's batch opens a step on trial."""
        self._flush()
        now = self._now = self._carry_over()
        self._fetches.open(batch, left=left)
        now.rng_hash = self._fetches.rng_hash
        now.batch_size = self._ahead.fetched(self._fetches.size, left=left, frame=sys._getframe(1))
        if self._peeked:
            now.fed.add(batch, copy=self._will_hold)
        if self._will_hold:
            now.watch_all(self.tensors)
        if self._fetches.left or self._reader is None or self._keyframe_due:
            stack = self._place(now)
            self._fetches.at(now.site)
            self._maybe_keyframe(now, stack, self._look(stack), left=self._fetches.left)

    @property
    def whole(self) -> bool:
        """Whether all of the step that is over is kept, here or in the trace."""
        stored = self._replayable and self._options.weights and self._options.flight is None
        return self.finished is None or self.finished.watched or bool(stored and self.finished.grads)

    def _carry_over(self) -> OpenStep:
        """Captures and scalars given between the steps belong to the one that begins."""
        old, new = self._now, OpenStep()
        if not old.stepped and not old.losses:
            new.logs, new.captures = old.logs, old.captures
        return new

    def _place(self, now: OpenStep) -> list[frames.UserFrame]:
        stack = frames.user_frames(sys._getframe(2))
        now.site = frames.site_of(stack)
        now.epoch = frames.int_local(stack, "epoch")
        return stack

    def discard(self) -> None:
        """The fetch opened no step."""
        self._fetches.discard()
        self._now.batch_size = self._now.keyframe = None
        self._pace.forget(self.step)

    def forward(self, module: torch.nn.Module | None, args: tuple[Any, ...]) -> None:
        """Watched until a DataLoader is seen to drive the loop: where none does, the model's inputs are the batch."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # inside torch.func: parameters are wrappers that have no memory
        self._flush()
        if self._reader is None:
            self._look(frames.user_frames(sys._getframe(1)))
        if self._registry is None or self.boundary.open or not self._wanted.feeds(module, self._now.inputs is None):
            return
        if self._replayable or self._will_hold:
            self._take_inputs(model_inputs(args, frames.user_frame(sys._getframe(1))), module)
        elif self._peeked:
            self._now.fed.add(list(args), copy=False)

    @property
    def _peeked(self) -> bool:
        """Whether only the paused process itself could show what the step was fed."""
        return self.live is not None and (self._peekable or self.making.wanted)

    @property
    def _will_hold(self) -> bool:
        """Whether it is known that the run will wait after the step that is open."""
        return self.live is not None and self.live.gate.will_hold(self.step)

    def _take_inputs(self, inputs: list[Any], module: torch.nn.Module | None) -> None:
        """Without a DataLoader: what the model was given is the batch, and what it was given last before a loss its size."""
        now = self._now
        if self._peeked:
            now.fed.add(inputs, copy=self._will_hold)
        if not self._replayable:
            return
        if now.inputs is None:
            now.inputs, now.input_size = self._fetches.draft(), input_size(inputs)
        elif not now.losses and module is not None and next(module.parameters(), None) is not None:
            now.input_size = input_size(inputs)
        if len(now.inputs) < MAX_INPUTS:
            now.inputs.add(inputs)

    def backward(self, losses: tuple[Any, ...]) -> None:
        """Keep the loss; of a closure that runs several times, its first evaluation."""
        if self._pending is not None or self._unpassed is not None:
            self._flush()
        self._now.note_losses(losses, in_optimizer=self.boundary.in_optimizer)

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are final and hyperparameters in force: note both."""
        if self._pending is not None or self._unpassed is not None:
            self._flush()
        if optimizer not in self._optimizers:
            self._meet(optimizer)
        if self.changes:
            self._change()
        now = self._now
        now.note_options(optimizer, self._optimizers.index(optimizer))
        now.closures_before, now.squares_before = now.closure_losses, now.grad_squares
        now.grad_squares += grad_norm(optimizer) ** 2
        now.stepped = True
        if self._grads or self._will_hold:
            self._keep_grads(optimizer)

    def _change(self) -> None:
        """Hyperparameters were changed while the run was paused; a replay makes the same change at the same place."""
        changes, self.changes = self.changes, {}
        try:
            hyperparameters.apply(self.optimizers, changes)
        except UsageError as error:
            self.event("note", f"could not set {json.dumps(changes)}: {error}")
            return
        self._now.changes = changes
        self.event("set", json.dumps(changes))

    def _meet(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is seen for the first time: what it changes is state, though no variable may lead to it."""
        self._optimizers.add(optimizer)
        if self._registry is None or all(optimizer is not o for o in self._registry.optimizers.values()):
            self._look(frames.user_frames(sys._getframe(2)), midway=True)

    def _keep_grads(self, optimizer: torch.optim.Optimizer) -> None:
        if self._registry is not None:
            self._now.grads |= copies(optimizer, self._registry.name_of())

    def optimizer_post(self, optimizer: torch.optim.Optimizer) -> None:
        """A closure made the gradients while the optimizer stepped: they are final now."""
        now = self._now
        if now.closure_losses > now.closures_before:
            now.grad_squares = now.squares_before + grad_norm(optimizer) ** 2
            if self._options.grads or self._will_hold:
                self._keep_grads(optimizer)

    # -- state ---------------------------------------------------------------------------------------------------------

    def _look(self, stack: list[frames.UserFrame], *, over: bool = False, midway: bool = False) -> list[walk.Slot]:
        """Walk the program from `stack`; a new set of tensors is a new layout, and its state is written.

        `over`: the step is over, what is found is what the next one starts from. `midway`: another optimizer may have
        stepped; what has moved since the step's start is no state of any step.
        """
        slots = walk.walk(stack)
        self._optimizers.see([slot.value for slot in slots if slot.kind == "optimizer"])
        found = registry.build(slots, self._optimizers.hidden())
        if not found.tensors:
            return slots
        resized = self._reader is not None and not self._reader.matches()
        if self._registry is None or resized or not same_tensors(found, self._registry):
            layout = registry.make_layout(found, self._layouts)
            self._registry = found
            if self._reader is None or layout.digest != self._reader.layout.digest:
                self._layouts += 1
                self._pace.force()
                moved = midway and self._moved
                self._reader = registry.StateReader(found, layout)
                self._options.decide_weights(found)
                self._write_state(found, over=over, moved=moved)
            else:
                self._reader = registry.StateReader(found, self._reader.layout)
        else:
            self._registry = found
        self._wanted.roots = frozenset(map(id, found.modules.values()))
        return slots

    @property
    def _moved(self) -> bool:
        """Whether the state is another than when it was last read."""
        return self._reader is not None and self._state is not None and self._reader.fingerprint()[0] != self._state[0]

    def _write_state(self, found: registry.Registry, *, over: bool, moved: bool) -> None:
        assert self._reader is not None
        layout = self._reader.layout
        fingerprint, hashes = self._state = self._reader.fingerprint()
        if self.writing.journal is None:
            self.writing.journal, self.step = self._open_journal(fingerprint)
        header = {**layout.header(), "aliases": found.aliases}
        self.writing.layout(header, every_step=bool(self._options.weights))
        if moved:
            return
        header = {
            "kind": "state",
            "step": self.step + over,
            "session": self._session,
            "layout": layout.id,
            "hashes": hashes,
            "fingerprint": fingerprint,
        }
        self.writing.append(header, [("weights", self._reader.packed(), None)])

    def forget_written(self) -> None:
        """What was written is gone: samples and a keyframe are written again."""
        self._fetches.forget_samples()
        self._pace.force()

    def event(self, kind: str, detail: str, step: int | None = None) -> None:
        """Write an event, at the current step if no other is named."""
        self.writing.event(kind, detail, self.step if step is None else step)

    def _maybe_keyframe(
        self, now: OpenStep, stack: list[frames.UserFrame], slots: list[walk.Slot] | None, *, left: bool
    ) -> None:
        """Take a keyframe where one is due; `slots` is the walk from `stack`, if it was made already."""
        place = frames.code_site(stack)
        moved = place != self._code_site
        self._code_site = place
        if not self._replayable or self._reader is None or self._registry is None:
            return
        changed = left and self._moved
        if moved or changed or self._pace.due(self.step, after_gap=left):
            started = time.perf_counter()
            now.keyframe_can_wait = not (moved or changed or self._pace.forced or self._options.flight)
            found = self._look(stack) if slots is None else slots
            now.keyframe = keyframe.capture(found, self._registry, self._reader, self._constants)
            now.keyframe.tree["site"] = now.site
            now.keyframe.tree["leader"] = self._leader_path()
            now.keyframe.tree["inner"] = self._fetches.has_batch
            now.keyframe.tree["files"] = files.position()
            now.keyframe.tree["compiled"] = list(self.writing.compiled.steps)
            self._pace.took(self.step, time.perf_counter() - started)

    @property
    def _keyframe_due(self) -> bool:
        return self._replayable and self._pace.due(self.step)

    def _leader_path(self) -> str | None:
        leader = self.boundary.leader()
        found = self._registry.optimizers if self._registry else {}
        return next((path for path, o in found.items() if o is leader), None)

    # -- the end of a step ---------------------------------------------------------------------------------------------

    def end(self, *, mode: str, interrupted: bool = False) -> None:
        """Write the step that is over; in a loop without a DataLoader its end is where the next one starts."""
        now = self._now
        if self._reader is None or not self._reader.matches():
            self._look(frames.user_frames(sys._getframe(1)), over=True)
        if self._reader is None:
            return
        self._state = self._reader.fingerprint()
        self._watch(mode)
        if mode == "optimizer" and now.inputs is not None:
            self._fetches.give(now.inputs, now.input_size)
            now.batch_size = now.batch_size or now.input_size
        if mode == "optimizer":
            now.batch_size = now.batch_size or self._ahead.rest()
        self._ahead.trained(by_loader=mode == "loader")
        passed = self._passed(now, mode, interrupted)
        self._write_keyframe(now)
        self.finished = now
        self._pending = passed
        self._wanted.all = True
        self.trained = True
        if mode == "loader" or interrupted:
            self._flush()
        if interrupted:
            return
        self.step += 1
        self._pace.stepped(passed.header["duration"])
        self._now = OpenStep()
        if mode == "optimizer":
            self._begin_optimizer_step()

    def _begin_optimizer_step(self) -> None:
        """The place after an optimizer's step is where the next step starts."""
        if self._will_hold:
            self._now.watch_all(self.tensors)
        if self._replayable:
            self._now.rng_hash = self._fetches.random_now()
        if self._code_site is None or self._keyframe_due:
            stack = self._place(self._now)
            self._maybe_keyframe(self._now, stack, None, left=False)
            self._write_keyframe(self._now)

    def _passed(self, now: OpenStep, mode: str, interrupted: bool) -> Passed:
        """Note all that the step's record will say."""
        assert self._reader is not None
        assert self._state is not None
        self.writing.compiled.note(self.step)
        size = int(now.logs.pop("batch_size", 0)) or now.batch_size
        epoch, index, kept = now.epoch, None, True
        if not interrupted:
            if self._fetches.left:
                self.writing.emission.epoch(now.epoch, self.step)
            epoch, index, kept = self.writing.emission.offer(self.step, size)
        header = {
            "kind": "unfinished" if interrupted else "step",
            "step": self.step,
            "session": self._session,
            "mode": mode,
            "kept": kept,
            "epoch": epoch,
            "batch_index": index,
            "batch_size": size,
            "loss": now.loss(),
            "lr": now.lr,
            "grad_norm": now.norm(),
            "time": time.time(),
            "duration": time.perf_counter() - now.started,
            "fingerprint": self._state[0],
            "layout": self._reader.layout.id,
            "hashes": self._state[1],
            "rng_hash": now.rng_hash,
        }
        passed = Passed(header, now, self._fetches.taken(by_loader=mode == "loader"), self._reader.layout)
        now.losses = []  # Their values are known: no tensor of the program is kept alive.
        heavy = kept and bool(self._options.weights or self._grads) and not self.writing.light(self.step)
        if heavy and self._options.weights:
            # Copied where the record waits (a loop without a DataLoader): the live memory would have moved on.
            packed = self._reader.packed()
            passed.weights = packed if mode == "loader" else [b"".join(packed)]
        if now.grads:
            passed.grads, passed.summed = heavy and self._grads, self._options.flight is None
        return passed

    def _write_keyframe(self, now: OpenStep) -> None:
        new = self._fetches.new_samples()
        if new:
            self.writing.samples(new)
        frame, now.keyframe = now.keyframe, None
        if frame is not None:
            if now.keyframe_can_wait and frame.nbytes >= LARGE_KEYFRAME:
                self.writing.keyframe_later(self.step, frame, functools.partial(self._wrote, frame.nbytes))
            else:
                started = time.perf_counter()
                written = self.writing.keyframe(self.step, frame)
                self._wrote(frame.nbytes, written, time.perf_counter() - started)
            if self._options.weights_by_size and self._options.weights and self.writing.forgo_weights(self.step):
                self._options.weights = False

    def _wrote(self, nbytes: int, written: bool, seconds: float) -> None:
        """A keyframe was written, or refused."""
        self._pace.wrote(nbytes, seconds, self.writing.room)
        if not written:
            self._pace.force()

    def _flush(self) -> None:
        """What is to be said of the step that is over has been said: write its record; here the run may be held."""
        passed, self._pending = self._pending, None
        if passed is not None:
            if passed.header["mode"] == "optimizer":
                # What was said after the optimizer's step, before the next forward pass, is about the step just done.
                self._now.give_said(passed.now)
            header, sections = passed.record()
            if not self.writing.step(header, sections):
                self._pace.force()
            self._unpassed = header
        if self._unpassed is not None and not self.boundary.in_callback:  # There no signal could be heard.
            header, self._unpassed = self._unpassed, None
            self._wanted.all = not self._wanted.roots
            if self.live is not None:
                self._now.started += self.live.stepped(header)
            if self._now is not self.finished and self._will_hold:
                self._now.watch_all(self.tensors)
            self.finished = None

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The program's optimizers, by the paths at which they were found."""
        return self._registry.optimizers if self._registry is not None else {}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The live tensors of the state, by name."""
        return self._registry.tensors if self._registry is not None else {}

    @property
    def failure(self) -> OSError | None:
        """Why the disk does not take what is recorded, while it does not."""
        return self.writing.failure

    def driver(self) -> Any:
        """The DataLoader's iterator that drives the loop, if one does."""
        return self.boundary.driver()

    def close(self, *, failed: bool) -> None:
        """The recording ends: a step that an exception cut short is written as unfinished."""
        if self.boundary.open and self.boundary.trained:
            self.boundary.close(interrupted=failed)
        elif failed and self.boundary.open and self._fetches.has_batch and self._reader is not None:
            self.end(mode="loader", interrupted=True)
        self._flush()
        self.writing.finish(self.step)

    def _watch(self, mode: str) -> None:
        """Forward calls are watched where no DataLoader drives the loop, to know the batch."""
        if mode == "loader":
            self.stop_watching()
        elif self._unwatch is None:
            self._unwatch = hooks.watch_forward(self.shield, self._wanted)

    def stop_watching(self) -> None:
        """Take off what sees forward calls, if it is on: who made this sees to it at the end, whatever has failed until then."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    # -- what user code gives (tracer.active.Listener) -----------------------------------------------------------------

    def capture(self, key: str, value: Any, dims: Sequence[str] | None) -> None:
        """Keep a copy of `value` for the current step; one number is logged."""
        self._now.capture(key, value, dims)

    def log(self, scalars: dict[str, Any]) -> None:
        """Keep scalars for the current step; one that no float holds as a capture, an array of one."""
        self._now.log(scalars)

    def progress(self, fields: dict[str, Any]) -> None:
        """Keep what the program says of its progress."""
        self.writing.emission.progress(fields)
        if self.live is not None:
            self.live.progress.given(fields, self.step + (self.boundary.open and self.boundary.trained))
