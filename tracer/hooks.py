"""Where Rewind touches torch: all hooks and patches, put on by one context manager and always taken off.

Room: tracer. May touch: torch's global optimizer hooks, `Tensor.backward`, `torch.autograd.backward`, `GradScaler.scale`, the
DataLoader iterator's `__next__`; nothing of it stays after `installed` is left.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.modules import module as modules
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import dataloader

from tracer import compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Events(Protocol):
    """What happens in a training loop, in the thread that trains."""

    def fetch(self, iterator: Any, native: Callable[[], Any]) -> Any: ...

    def backward(self, losses: tuple[Any, ...]) -> None: ...

    def forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...

    def entered(self, arguments: tuple[Any, ...]) -> None: ...

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None: ...

    def optimizer_post(self, optimizer: torch.optim.Optimizer) -> None: ...


class _Forks:
    """How often this process was forked from the one that loaded this module."""

    count = 0


def _after_fork() -> None:
    _Forks.count += 1


os.register_at_fork(after_in_child=_after_fork)


class _Guard:
    """Lets events through from one thread of this process only: the one that trains.

    All that is put on leads to `events` through it: what torch keeps of a patch (dynamo, when it is loaded meanwhile)
    says and holds nothing once it is taken off.
    """

    def __init__(self, events: Events, thread: int | None) -> None:
        self.events: Events | None = events
        self.forks = _Forks.count
        self.thread = thread if thread is not None else threading.get_ident()
        self.fixed = thread is not None

    def open(self, *, trains: bool = True) -> Events | None:
        """Who is to be told what happens here and now, None where nobody is."""
        if _Forks.count != self.forks:
            return None
        me = threading.get_ident()
        if me != self.thread and trains and not self.fixed:
            self.thread = me
        self.fixed = self.fixed or trains
        return self.events if self.thread == me else None

    def close(self) -> None:
        self.events = None


@contextlib.contextmanager
def installed(events: Events, *, thread: int | None = None) -> Iterator[None]:
    """Send what happens to `events` while the block runs; `thread` names the only thread to listen to, if it is known."""
    guard = _Guard(events, thread)
    with contextlib.ExitStack() as stack:
        stack.callback(guard.close)
        scaled = _patch_scaler(stack)
        _patch_backward(stack, guard, scaled)
        _patch_fetch(stack, guard)
        pre = compiled.unseen(lambda o, a, k: now.optimizer_pre(o) if (now := guard.open()) else None)
        stack.callback(register_optimizer_step_pre_hook(pre).remove)
        post = compiled.unseen(lambda o, a, k: now.optimizer_post(o) if (now := guard.open()) else None)
        stack.callback(register_optimizer_step_post_hook(post).remove)
        stack.enter_context(compiled.noticed())
        yield


class Wanted:
    """Whose forward calls are wanted: of the modules whose ids are in `roots`, or `all`."""

    __slots__ = ("all", "roots")

    def __init__(self) -> None:
        self.all = True
        self.roots: frozenset[int] = frozenset()

    def feeds(self, module: torch.nn.Module | None, first: bool) -> bool:
        """Whether what `module` is given is the step's batch; of compiled code (None), what the `first` in the step is given."""
        return first if module is None else id(module) in self.roots


def watch_forward(events: Events, wanted: Wanted) -> Callable[[], None]:
    """Send the forward calls of modules that are `wanted` to `events`, and where compiled code is entered.

    Until the returned function is called, in the thread that trains, where gradients are on.
    """
    watch = _ForwardWatch(events, wanted)
    return watch.stack.close


class _ForwardWatch:
    """A hook on every module; none while compiled code runs, which would otherwise not be what it is without us."""

    def __init__(self, events: Events, wanted: Wanted) -> None:
        self._events, self._wanted = events, wanted
        self._here = (_Forks.count, threading.get_ident())
        self._depth = 0
        self._hook = self._made()
        self.stack = contextlib.ExitStack()
        self._handle = torch.nn.modules.module.register_module_forward_pre_hook(self._hook)
        self.stack.callback(self._handle.remove)
        self.stack.callback(compiled.watch(self._entered))
        # To be warned of global hooks would say nothing to the user: this one is not there when it matters.
        _replace(self.stack, modules, "_has_any_global_hook", self._not_counted)

    def _made(self) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        """The hook: of a module that is not wanted it costs this one call."""
        wanted, tell = self._wanted, compiled.unseen(self._forward)

        def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if wanted.all or id(module) in wanted.roots:
                tell(module, args)

        return compiled.passing(hook)

    def _forward(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if self._listening():
            self._events.forward(module, args, {})

    def _listening(self) -> bool:
        # A data worker that was forked off has the hook, too: it may call modules, as transforms.
        return torch.is_grad_enabled() and self._here == (_Forks.count, threading.get_ident())

    def _entered(self) -> Callable[[], None] | None:
        if self._here[1] != threading.get_ident():
            return None
        self._depth += 1
        modules._global_forward_pre_hooks.pop(self._handle.id, None)
        if self._depth == 1 and self._listening():
            self._events.entered(compiled.arguments())
        return self._left

    def _left(self) -> None:
        self._depth -= 1
        if not self._depth and self.stack._exit_callbacks:
            modules._global_forward_pre_hooks[self._handle.id] = self._hook

    def _not_counted(self, original: Callable[[], Any]) -> Callable[[], Any]:
        def has_any() -> Any:
            own = modules._global_forward_pre_hooks.pop(self._handle.id, None)
            try:
                return original()
            finally:
                if own is not None:
                    modules._global_forward_pre_hooks[self._handle.id] = own

        return has_any


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    stack.callback(setattr, owner, name, original)


class _Scaled:
    """The loss behind the scaled loss that was made last, so that the true one is recorded."""

    def __init__(self) -> None:
        self.result: Any = None
        self.loss: Any = None
        self.compiled = False
        """Whether compiled code scales losses: what it gives cannot be told from a loss."""

    def forget(self) -> None:
        self.result = self.loss = None

    def scaling(self) -> None:
        self.compiled = True

    def true(self, losses: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the losses behind `losses`, without those of which it is not known."""
        if self.result is None and not self.compiled:
            return losses
        known = (self.loss if loss is self.result else loss for loss in losses)
        return tuple(loss for loss in known if loss is self.loss or not self.compiled)


def _patch_scaler(stack: contextlib.ExitStack) -> _Scaled:
    scaled = _Scaled()
    stack.callback(scaled.forget)
    traced = compiled.when_traced(scaled.scaling)

    def make(original: Callable) -> Callable:
        @functools.wraps(original)
        def scale(self: Any, outputs: Any) -> Any:
            if torch.compiler.is_compiling():
                traced()
                return original(self, outputs)
            result = original(self, outputs)
            if isinstance(outputs, torch.Tensor):
                scaled.result, scaled.loss = result, outputs.detach()
            return result

        return scale

    _replace(stack, torch.amp.GradScaler, "scale", make)
    return scaled


def _patch_backward(stack: contextlib.ExitStack, guard: _Guard, scaled: _Scaled) -> None:
    def tell(losses: Any) -> None:
        events = guard.open()
        if events is not None:
            each = tuple(losses) if isinstance(losses, (list, tuple)) else (losses,)
            events.backward(scaled.true(each))

    telling = _Once(compiled.unseen(tell))
    _replace(stack, torch.Tensor, "backward", telling.method)
    _replace(stack, torch.autograd, "backward", telling.function)


class _Once:
    """`Tensor.backward` calls `torch.autograd.backward`, that of a subclass itself again (`__torch_function__`): told once."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell
        self._inside = False

    def method(self, original: Callable) -> Callable:
        once = self

        @functools.wraps(original)
        def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            outer, once._inside = once._inside, True
            try:
                result = original(self, *args, **kwargs)
            finally:
                once._inside = outer
            if not outer:
                once._tell(self)
            return result

        return compiled.passing(backward)

    def function(self, original: Callable) -> Callable:
        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(tensors, *args, **kwargs)
            if not self._inside:
                self._tell(tensors)
            return result

        return compiled.passing(backward)


def _patch_fetch(stack: contextlib.ExitStack, guard: _Guard) -> None:
    def make(original: Callable) -> Callable:
        @functools.wraps(original)
        def fetch(self: Any) -> Any:
            events = guard.open(trains=False) if torch.is_grad_enabled() else None
            if events is None:
                return original(self)
            return events.fetch(self, functools.partial(original, self))

        return compiled.unseen(fetch)

    _replace(stack, dataloader._BaseDataLoaderIter, "__next__", make)
