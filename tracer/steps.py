"""The recorder's half of the step boundary: from the points of a step to records in the journal.

Room: tracer. May touch: the journal it is given; of the program it changes nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer import frames, hooks, hyperparameters, keyframe, registry, values, walk
from tracer.batches import BatchEncoder
from tracer.boundary import Boundary
from tracer.emission import Emission
from tracer.errors import UsageError
from tracer.fetches import Fetches
from tracer.gradients import grad_norm
from tracer.journal import Journal
from tracer.optimizers import Optimizers
from tracer.pace import KeyframePace
from tracer.sections import (
    OpenStep,
    Section,
    described,
    fits_float,
    input_size,
    model_inputs,
    number,
    pack_grads,
    same_tensors,
)
from tracer.shield import Shield
from tracer.tail import checksum

if TYPE_CHECKING:
    from tracer.live import Live
    from tracer.options import Options

MAX_INPUTS = 64
"""So many forward calls of one step are kept as its batch (a rollout may have thousands)."""
OpenJournal = Callable[[str], tuple[Journal, int]]


class StepRecorder:
    """Receives the points of a step (see `boundary.Steps`) and writes what they say."""

    def __init__(self, open_journal: OpenJournal, options: Options, session: int) -> None:
        """`open_journal` gives, for the fingerprint of the first state, the journal and the number of the first step."""
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._options = options
        self._emission = Emission(options.every, session, self._append)
        self._session = session
        self.boundary = Boundary(self)
        self.shield = Shield(self)
        self.trained = False
        self._fetches = Fetches(BatchEncoder(options.sample_counts), keep=options.replayable)
        self._constants = keyframe.Constants()
        self._pace = KeyframePace(options.keyframe_every)
        self._optimizers = Optimizers()
        self._registry: registry.Registry | None = None
        self._roots: frozenset[int] = frozenset()
        self._reader: registry.StateReader | None = None
        self._layouts = 0
        self._code_site: Any = None
        self._state: tuple[str, list[int]] | None = None
        self._pending: tuple[dict[str, Any], list[Section]] | None = None
        self._now = OpenStep()
        self._unwatch: Callable[[], None] | None = hooks.watch_forward(self.shield, self.wants)
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
        now.rng_hash, now.batch_size = self._fetches.rng_hash, self._fetches.size
        if self._peeked:
            now.fed.add(batch, copy=self._will_hold)
        if self._fetches.left or self._reader is None or self._keyframe_due:
            stack = self._place(now)
            self._fetches.at(now.site)
            self._maybe_keyframe(now, stack, self._look(stack), left=self._fetches.left)

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
        self._pace.forget(self.step)

    def wants(self, module: torch.nn.Module) -> bool:
        """Whether a call of `module` says anything: it is a root of the state, or something waits for the next call."""
        return id(module) in self._roots or self._pending is not None or not self._roots or self._unpassed is not None

    def forward(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Watched until a DataLoader is seen to drive the loop: where none does, the model's inputs are the batch."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # inside torch.func: parameters are wrappers that have no memory
        self._flush()
        if self._reader is None:
            self._look(frames.user_frames(sys._getframe(1)))
        if self._registry is None or self.boundary.open or id(module) not in self._roots:
            return
        if self._options.replayable or self._will_hold:
            self._take_inputs(model_inputs(args, frames.user_frame(sys._getframe(1))))
        elif self._peeked:
            self._now.fed.add(list(args), copy=False)

    @property
    def _peeked(self) -> bool:
        """Whether only the paused process itself could show what the step was fed."""
        return self.live is not None and (not self._options.replayable or self._options.flight is not None)

    @property
    def _will_hold(self) -> bool:
        """Whether it is known that the run will wait after the step that is open."""
        return self.live is not None and self.live.gate.will_hold

    def _take_inputs(self, inputs: list[Any]) -> None:
        """Without a DataLoader: what the model was given is the batch."""
        now = self._now
        if self._peeked:
            now.fed.add(inputs, copy=self._will_hold)
        if not self._options.replayable:
            return
        if now.inputs is None:
            now.inputs, now.input_size = self._fetches.draft(), input_size(inputs)
        if len(now.inputs) < MAX_INPUTS:
            now.inputs.add(inputs)

    def backward(self, losses: tuple[Any, ...]) -> None:
        """Keep the loss; of a closure that runs several times, its first evaluation."""
        self._flush()
        self._now.note_losses(losses, in_optimizer=self.boundary.in_optimizer)

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are final and hyperparameters in force: note both."""
        self._flush()
        if optimizer not in self._optimizers:
            self._meet(optimizer)
        if self.changes:
            self._change()
        now = self._now
        now.note_options(optimizer, self._optimizers.index(optimizer))
        now.grad_squares += grad_norm(optimizer) ** 2
        now.stepped = True
        if self._options.grads or self._will_hold:
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
            self._look(frames.user_frames(sys._getframe(2)))

    def _keep_grads(self, optimizer: torch.optim.Optimizer) -> None:
        names = self._registry.name_of() if self._registry else {}
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None and id(param) in names and param.grad.layout is torch.strided:
                    self._now.grads[names[id(param)]] = bytes(values.tensor_bytes(param.grad))

    def optimizer_post(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing to note: the state is read when the step ends."""

    # -- state ---------------------------------------------------------------------------------------------------------

    def _look(self, stack: list[frames.UserFrame]) -> list[walk.Slot]:
        """Walk the program from `stack`; a new set of tensors is a new layout, and its state is written."""
        slots = walk.walk(stack)
        self._optimizers.see([slot.value for slot in slots if slot.kind == "optimizer"])
        found = registry.build(slots, self._optimizers.hidden())
        if not found.tensors:
            return slots
        if self._registry is None or not same_tensors(found, self._registry):
            layout = registry.make_layout(found, self._layouts)
            self._registry = found
            if self._reader is None or layout.digest != self._reader.layout.digest:
                self._layouts += 1
                self._pace.force()
                self._reader = registry.StateReader(found, layout)
                self._options.decide_weights(found)
                self._write_state(found)
            else:
                self._reader = registry.StateReader(found, self._reader.layout)
        else:
            self._registry = found
        self._roots = frozenset(map(id, found.modules.values()))
        return slots

    def _write_state(self, found: registry.Registry) -> None:
        assert self._reader is not None
        layout = self._reader.layout
        fingerprint, hashes = self._state = self._reader.fingerprint()
        if self._journal is None:
            self._journal, self.step = self._open_journal(fingerprint)
        header = {**layout.header(), "aliases": found.aliases}
        self._journal.layout(header, every_step=bool(self._options.weights))
        header = {
            "kind": "state",
            "step": self.step,
            "session": self._session,
            "layout": layout.id,
            "hashes": hashes,
            "fingerprint": fingerprint,
        }
        self._append(header, [("weights", self._reader.packed(), None)])

    def _append(self, header: dict[str, Any], sections: Sequence[Section] = ()) -> bool:
        return self._journal is not None and self._journal.append(header, sections)

    def forget_written(self) -> None:
        """What was written is gone: samples and a keyframe are written again."""
        self._fetches.forget_samples()
        self._pace.force()

    def event(self, kind: str, detail: str, step: int | None = None) -> None:
        """Write an event, at the current step if no other is named."""
        place = self.step if step is None else step
        self._append({"kind": "event", "step": place, "event": kind, "detail": detail, "time": time.time()})

    def _maybe_keyframe(
        self, now: OpenStep, stack: list[frames.UserFrame], slots: list[walk.Slot] | None, *, left: bool
    ) -> None:
        """Take a keyframe where one is due; `slots` is the walk from `stack`, if it was made already."""
        place = frames.code_site(stack)
        moved = place != self._code_site
        self._code_site = place
        if not self._options.replayable or self._reader is None or self._registry is None:
            return
        changed = left and self._state is not None and self._reader.fingerprint()[0] != self._state[0]
        if moved or changed or self._pace.due(self.step, after_gap=left):
            started = time.perf_counter()
            found = self._look(stack) if slots is None else slots
            now.keyframe = keyframe.capture(found, self._registry, self._reader, self._constants)
            now.keyframe.tree["site"] = now.site
            now.keyframe.tree["leader"] = self._leader_path()
            now.keyframe.tree["inner"] = self._fetches.has_batch
            self._pace.took(self.step, time.perf_counter() - started)

    @property
    def _keyframe_due(self) -> bool:
        return self._options.replayable and self._pace.due(self.step)

    def _leader_path(self) -> str | None:
        leader = self.boundary.leader()
        found = self._registry.optimizers if self._registry else {}
        return next((path for path, o in found.items() if o is leader), None)

    # -- the end of a step ---------------------------------------------------------------------------------------------

    def end(self, *, mode: str, interrupted: bool = False) -> None:
        """Write the step that is over; in a loop without a DataLoader its end is where the next one starts."""
        now = self._now
        if self._reader is None or not self._reader.matches():
            self._look(frames.user_frames(sys._getframe(1)))
        if self._reader is None:
            return
        self._state = self._reader.fingerprint()
        self._watch(mode)
        if mode == "optimizer" and now.inputs is not None:
            self._fetches.give(now.inputs, now.input_size)
            now.batch_size = now.batch_size or now.input_size
        sections: list[Section] = []
        header = self._header(now, mode, interrupted) | self._fetches.header(sections)
        if header["kept"]:
            self._add_kept(sections, now, header)
        self._write_keyframe(now)
        self.finished = now
        self._fetches.ended(by_loader=mode == "loader")
        self._pending = (header, sections)
        self.trained = True
        if mode == "loader" or interrupted:
            self._flush()
        if interrupted:
            return
        self.step += 1
        self._pace.stepped(header["duration"])
        self._now = OpenStep()
        if mode == "optimizer":
            self._begin_optimizer_step()

    def _begin_optimizer_step(self) -> None:
        """The place after an optimizer's step is where the next step starts."""
        if self._options.replayable:
            self._now.rng_hash = self._fetches.random_now()
        if self._code_site is None or self._keyframe_due:
            stack = self._place(self._now)
            self._maybe_keyframe(self._now, stack, None, left=False)
            self._write_keyframe(self._now)

    def _header(self, now: OpenStep, mode: str, interrupted: bool) -> dict[str, Any]:
        assert self._reader is not None
        assert self._state is not None
        size = int(now.logs.pop("batch_size", 0)) or now.batch_size
        if interrupted:
            epoch, index, kept = now.epoch, None, True
        else:
            if self._fetches.left:
                self._emission.epoch(now.epoch, self.step)
            epoch, index, kept = self._emission.offer(self.step, size)
        finished = time.perf_counter()
        header: dict[str, Any] = {
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
            "duration": finished - now.started,
            "fingerprint": self._state[0],
            "layout": self._reader.layout.id,
            "hashes": self._state[1],
            "rng_hash": now.rng_hash,
            "logs": now.scalars(),
            "captures": [],
        }
        if now.changes:
            header["set"] = now.changes
        if now.site is not None:
            header["site"] = now.site
        return header

    def _add_kept(self, sections: list[Section], now: OpenStep, header: dict[str, Any]) -> None:
        for i, (what, data) in enumerate(now.captures.values()):
            header["captures"].append(what)
            sections.append((f"capture{i}", [data], checksum([data])))
        assert self._reader is not None
        if self._options.weights:
            # Copied where the record waits (a loop without a DataLoader): the live memory would have moved on.
            packed = self._reader.packed()
            sections.append(("weights", packed if header["mode"] == "loader" else [b"".join(packed)], None))
        if now.grads and self._options.grads:
            grads = pack_grads(now.grads, self._reader.layout)
            # What a flight recorder lets go of is never summed: it does so when it writes.
            sections.append(("grads", grads, checksum(grads) if self._options.flight is None else None))

    def _write_keyframe(self, now: OpenStep) -> None:
        frame, now.keyframe = now.keyframe, None
        for new in self._fetches.new_samples():
            header = {
                "kind": "samples",
                "pool": new.pool,
                "dtype": new.dtype,
                "shape": list(new.shape),
                "first": new.first,
                "count": len(new.rows),
            }
            self._append(header, [("data", new.rows, checksum(new.rows))])
        if frame is not None:
            sizes = [len(b) for b in frame.buffers]
            header = {"kind": "keyframe", "step": self.step, "session": self._session, "digest": frame.digest}
            header |= {"tree": frame.tree, "buffers": sizes}
            self._append(header, [("data", frame.buffers, checksum(frame.buffers))])

    def _flush(self) -> None:
        if self._pending is None:
            self._pass()
            return
        (header, sections), self._pending = self._pending, None
        if header["mode"] == "optimizer":
            self._late(header, sections)
        written = self._journal is not None and self._journal.step(header, sections)
        if not written:
            self._pace.force()
        self._emission.wrote(header, written=written)
        self._unpassed = header
        self._pass()

    def _pass(self) -> None:
        """A step's record is written: between it and the next, the run may be held. Not where a signal could not be heard."""
        if self._unpassed is None or self.boundary.in_callback:
            return
        header, self._unpassed = self._unpassed, None
        if self.live is not None:
            self._now.started += self.live.stepped(header)
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
        return None if self._journal is None else self._journal.failure

    def driver(self) -> Any:
        """The DataLoader's iterator that drives the loop, if one does."""
        return self.boundary.driver()

    def _late(self, header: dict[str, Any], sections: list[Section]) -> None:
        """What the program said after the optimizer's step, before the next forward pass, is about the step just done."""
        now = self._now
        header["logs"].update(now.logs)
        if header["kept"]:
            for what, data in now.captures.values():
                sections.append((f"capture{len(header['captures'])}", [data], checksum([data])))
                header["captures"].append(what)
        if self.finished is not None:
            self.finished.captures.update(now.captures)
        now.logs, now.captures = {}, {}

    def close(self, *, failed: bool) -> None:
        """The recording ends: a step that an exception cut short is written as unfinished."""
        if self.boundary.open and self.boundary.trained:
            self.boundary.close(interrupted=failed)
        elif failed and self.boundary.open and self._fetches.has_batch and self._reader is not None:
            self.end(mode="loader", interrupted=True)
        self._flush()
        self._emission.finish()
        self._stop_watching()

    def _watch(self, mode: str) -> None:
        """Forward calls are watched where no DataLoader drives the loop, to know the batch."""
        if mode == "loader":
            self._stop_watching()
        elif self._unwatch is None:
            self._unwatch = hooks.watch_forward(self.shield, self.wants)

    def _stop_watching(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    # -- what user code gives (tracer.active.Listener) -----------------------------------------------------------------

    def capture(self, key: str, value: Any, dims: Sequence[str] | None) -> None:
        """Keep a copy of `value` for the current step; a number becomes a scalar, one that no float holds an array of one."""
        tensor = value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
        if tensor.dim() == 0:
            if fits_float(tensor):
                self._now.logs[key] = float(tensor)
                return
            tensor = tensor.reshape(1)
        self._now.captures[key] = (described(key, tensor, dims), bytes(values.tensor_bytes(tensor)))

    def log(self, scalars: dict[str, Any]) -> None:
        """Keep scalars for the current step."""
        self._now.logs.update({name: number(value) for name, value in scalars.items()})

    def progress(self, fields: dict[str, Any]) -> None:
        """Keep what the program says of its progress."""
        self._emission.progress(fields)
        if self.live is not None:
            self.live.progress.given(fields, self.step + (self.boundary.open and self.boundary.trained))
