"""An engine that shows each step it has re-executed to a user's function, and puts the program back as it was. # B3

The function runs where the program stands, with the hooks deaf and gradients on; in a thread of its own where the
program has switched something that goes by thread. Random generators are always put back; weights, gradients, modes,
optimizers and the program's variables where the function took hold of the live modules.
Room: replay. May touch: the program's state while the function runs.
"""

from __future__ import annotations

import contextlib
import copy
import re
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from replay import function
from replay.engine import Engine, Target
from replay.moment import LiveMoment
from tracer import active, frames, keyframe, registry, rng, stored
from tracer.errors import ReplayError
from tracer.packing import PackedLayout
from tracer.sections import OpenStep
from tracer.stored import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from replay.channel import Message
    from tracer.boundary import Boundary


class HeldGrad:
    """A gradient that an optimizer used: copied at once, or held as it is and copied when it is asked for.

    torch counts the changes of a tensor: one that the loop has overwritten since is told from what the step used.
    """

    def __init__(self, grad: torch.Tensor, *, copy: bool) -> None:
        """Hold `grad`; `copy` it now."""
        copy = copy or grad.is_inference()
        self._grad = grad.detach().clone() if copy else grad
        self._version = None if copy else grad._version

    def value(self) -> torch.Tensor:
        """Return it as the step used it. Raise ReplayError where that is gone."""
        if self._version is None:
            return self._grad
        if self._grad._version != self._version:
            raise ReplayError(
                "the loop has overwritten the gradients: they are kept where the function's own text names `grads`"
            )
        return self._grad.detach().clone()


@dataclass(frozen=True)
class Start:
    """What a step started from: the packed state and how it is packed, each module's modes, the generators."""

    packed: bytes
    layout: PackedLayout
    modes: dict[str, list[bool]]
    random: rng.Rng

    def state(self, k: int) -> State:
        """Return the tensors, copied when they are asked for."""
        return State(k, None, stored.Copies(self.layout, self.packed))


class ObservingEngine(Engine):
    """Also obeys `define` (take this function) and `look` (run on, and show it each of these steps)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As Engine."""
        super().__init__(*args, **options)
        self._handlers |= {"define": self._on_define, "look": self._on_look}
        self._function: Callable[[Any], Any] | None = None
        self._name = ""
        self._start: Start | None = None
        self._batch: Any = None
        self._last = OpenStep()
        self._last_grads: dict[str, HeldGrad] = {}
        self._names_grads = True
        self._left: bytes | None = None
        """The packed state that the step has left, where the function has asked for it."""
        self._layouts: dict[int, PackedLayout] = {}
        self._side: ThreadPoolExecutor | None = None
        self._wanted: frozenset[int] = frozenset()
        self._pile: list[dict[str, Any]] | None = None
        self.dice = rng.RngReader()
        self.constants = keyframe.Constants()

    def _on_define(self, message: Message, parts: list[bytes]) -> None:
        given = function.Function(**message["function"])
        self._side = self._side or ThreadPoolExecutor(1, "rewind function")
        try:
            self._function, self._name, self._names_grads = given.load(), given.name, "grads" in given.source
        except Exception as error:  # noqa: BLE001  any failure of the user's text is the answer
            self._channel.send({"error": "function", "detail": str(error)})
        else:
            self._channel.send({"ok": True})

    # -- what is kept of a step ----------------------------------------------------------------------------------------

    def _enter(self, native: Callable[[], Any]) -> Any:
        batch = super()._enter(native)
        self._remember()
        record = self.past.record(self.at) if self._start is not None and self.at is not None else None
        self._batch = copy.deepcopy(batch) if record is not None and "made" in record else None
        return batch

    def _on_look(self, message: Message, parts: list[bytes]) -> None:
        """Run on through `steps`, ascending, of which the first is next; show the function each, and send all it says."""
        self._wanted, self._pile = frozenset(message["steps"]), []
        self._target = Target(message["steps"][-1] + 1, None, restored=True, kind="seek")
        # Where no fetch begins the step, it begins here.
        self._remember()

    def _remember(self, packed: bytes | None = None) -> None:
        """A step begins: keep what it starts from (`packed`, where that was read already)."""
        self._last_grads = {}
        self._start = None
        if self._function is None or self.at not in self._wanted:
            return
        if self._reader is None or self.registry is None:
            self._await_forward()
            return
        packed = b"".join(self._reader.packed()) if packed is None else packed
        modes = {path: [m.training for m in module.modules()] for path, module in self.registry.modules.items()}
        self._start = Start(packed, self._packed_layout(self._reader.layout), modes, self.dice.snapshot())

    def _await_forward(self) -> None:
        """A program that begins anew, without a loader, has its first state when it first calls a module."""
        thread = threading.get_ident()

        def seen(module: torch.nn.Module, args: Any) -> None:
            if threading.get_ident() == thread and torch.is_grad_enabled():
                hook.remove()
                self._look(frames.user_frames(sys._getframe(1)))
                if self._reader is not None:
                    self._remember()

        hook = torch.nn.modules.module.register_module_forward_pre_hook(seen)

    def _packed_layout(self, layout: registry.Layout) -> PackedLayout:
        if layout.digest not in self._layouts:
            self._layouts[layout.digest] = PackedLayout.of(layout.header())
        return self._layouts[layout.digest]

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the gradients: the loop may clear them before the step is over."""
        super().optimizer_pre(optimizer)
        if self._start is not None and self.registry is not None:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._last_grads |= self._grads_now(lambda t: id(t) in own)

    def _grads_now(self, wanted: Callable[[torch.Tensor], bool]) -> dict[str, HeldGrad]:
        found = self.registry.tensors.items() if self.registry else ()
        copy = self._names_grads
        return {n: HeldGrad(t.grad, copy=copy) for n, t in found if t.grad is not None and wanted(t)}

    def end(self, *, mode: str, interrupted: bool = False) -> None:
        """Keep the loss of the step that is over."""
        self._last = self._now
        super().end(mode=mode, interrupted=interrupted)

    # -- the function --------------------------------------------------------------------------------------------------

    def _judge_step(self, frame: FrameType) -> None:
        k, self._left = self.at, None
        super()._judge_step(frame)
        if self._pile is None:
            return
        if k in self._wanted:
            self._show()
        following = self.past.record(self.at) if self._pile is not None and self.at is not None else None
        if following is not None and following["mode"] == "optimizer":
            self._remember(self._left)

    def _reply_arrived(self) -> None:
        if self._pile is None:
            super()._reply_arrived()

    def _show(self) -> None:
        """Show the function the step that has just run; after the last one wanted, send what it said of all."""
        assert self.at is not None
        assert self._pile is not None
        assert self.verdict is not None
        try:
            said = self._ask()
        except Exception as error:  # noqa: BLE001  whatever the user's function raises is the answer
            self._pile, self._target = None, None
            self._channel.send({"error": "function", "detail": _said(error), "step": self.at - 1})
            return
        # Copied: what it gave may be the program's own tensors, which go on changing.
        copied = {key: value if isinstance(value, float) else _copied(value) for key, value in said.items()}
        self._pile.append({"verdict": self.verdict.as_dict(), "values": copied})
        if len(self._pile) == len(self._wanted):
            pile, self._pile, self._target = self._pile, None, None
            self._wanted = frozenset()
            self._send_tensors(pile)

    def _ask(self) -> dict[str, Any]:
        assert self._side is not None
        if self._start is None:
            raise ReplayError("the step's start was not seen")
        stage = _Stage(self, self._start, sys._getframe())
        before = active.set_listener(None)
        try:
            with deaf(self.boundary):
                moment = self._moment(stage)
                here = not torch.is_inference_mode_enabled() and not _autocasts()
                said = self._call(moment) if here else self._side.submit(self._call, moment).result()
            return function.tidy(self._name, said)
        finally:
            stage.leave()
            active.set_listener(before)

    def _call(self, moment: LiveMoment) -> Any:
        assert self._function is not None
        assert self._start is not None
        self.dice.put_back(self._start.random)
        with torch.enable_grad():
            return self._function(moment)

    def _moment(self, stage: _Stage) -> LiveMoment:
        assert self.at is not None
        assert self._reader is not None
        k, reader, start = self.at - 1, self._reader, stage.start

        def next_state() -> State:
            self._left = b"".join(reader.packed())
            return State(k + 1, None, stored.Copies(self._packed_layout(reader.layout), self._left))

        grads = self._last_grads or self._grads_now(lambda t: True)
        return LiveMoment(
            (k, self._last.loss()),
            lambda: self.past.trace.batch(k) if self._batch is None else self._batch,
            (lambda: start.state(k), next_state),
            (dict(self.captures), lambda: {name: held.value() for name, held in grads.items()}),
            stage.enter,
        )


@contextlib.contextmanager
def deaf(boundary: Boundary) -> Iterator[None]:
    """What is trained inside the block is none of the program's steps."""
    silent = dict.fromkeys(("forward", "backward", "optimizer_pre", "optimizer_post"), lambda *_: None)
    vars(boundary).update(silent, fetch=lambda iterator, native: native())
    try:
        yield
    finally:
        for name in (*silent, "fetch"):
            vars(boundary).pop(name)


def _autocasts() -> bool:
    kinds = {"cpu", *({"cuda"} if torch.cuda.is_initialized() else ())}
    return any(torch.is_autocast_enabled(kind) for kind in kinds)


class _Stage:
    """The live modules, put back to a step's start while a function looks at them."""

    def __init__(self, engine: ObservingEngine, start: Start, frame: Any) -> None:
        """`frame`: where the program stands."""
        self.start = start
        self._engine = engine
        self._frame = frame
        self._random = engine.dice.snapshot()
        self._saved: keyframe.Keyframe | None = None

    def enter(self) -> Mapping[str, torch.nn.Module]:
        """Put the modules into the state of the step's start; return those that have tensors, by their variable's
        name."""
        engine = self._engine
        slots = engine._look(frames.user_frames(self._frame))
        assert engine.registry is not None
        assert engine._reader is not None
        self._saved = keyframe.capture(slots, engine.registry, engine._reader, engine.constants)
        # Large constants (data sets) are not put back: hashing them at every step would cost more than the step.
        self._saved.tree["slots"] = [slot for slot in self._saved.tree["slots"] if not _is_constant(slot[2])]
        tensors = engine.registry.tensors
        with torch.no_grad():
            for name, old in self.start.state(0).items():
                if name in tensors and tensors[name].shape == old.shape:
                    tensors[name].data.copy_(old)
        for tensor in tensors.values():
            tensor.grad = None
        for path, modes in self.start.modes.items():
            _set_modes(engine.registry.modules.get(path), modes)
        engine.dice.put_back(self.start.random)
        return _named(engine.registry)

    def leave(self) -> None:
        """Put everything back to the step's end."""
        if self._saved is not None:
            engine, saved = self._engine, self._saved
            # Walked anew: a slot has the value that it was found with, and the function may have changed it since.
            slots = engine._look(frames.user_frames(self._frame))
            assert engine.registry is not None
            layout = PackedLayout.of(saved.tree["layout"])
            keyframe.restore(saved.tree, saved.buffers.__getitem__, layout, slots, engine.registry)
        self._engine.dice.put_back(self._random)


def _copied(value: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    return value.clone() if isinstance(value, torch.Tensor) else np.array(value)


def _is_constant(node: Any) -> bool:
    return isinstance(node, dict) and node.get("$") == "constant"


def _set_modes(module: torch.nn.Module | None, modes: list[bool]) -> None:
    if module is not None:
        for each, mode in zip(module.modules(), modes, strict=False):
            each.training = mode


def _named(found: registry.Registry) -> dict[str, torch.nn.Module]:
    named: dict[str, torch.nn.Module] = {}
    for path, module in found.modules.items():
        if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
            continue
        name = re.split(r"[.:]", path)[-1]
        named[name if name not in named else path] = module
    return named


def _said(error: Exception) -> str:
    """The error and the line of the user's text that raised it."""
    last = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<function ")]
    where = f" ({last[-1].filename[10:-1]}, line {last[-1].lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"
