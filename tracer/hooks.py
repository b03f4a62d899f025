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
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import dataloader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Events(Protocol):
    """What happens in a training loop, in the thread that trains."""

    def fetch(self, iterator: Any, native: Callable[[], Any]) -> Any: ...

    def backward(self, losses: tuple[Any, ...]) -> None: ...

    def forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...

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
        pre = register_optimizer_step_pre_hook(lambda o, a, k: now.optimizer_pre(o) if (now := guard.open()) else None)
        stack.callback(pre.remove)
        post = register_optimizer_step_post_hook(
            lambda o, a, k: now.optimizer_post(o) if (now := guard.open()) else None
        )
        stack.callback(post.remove)
        yield


class Wanted:
    """Whose forward calls are wanted: of the modules whose ids are in `roots`, or `all`."""

    __slots__ = ("all", "roots")

    def __init__(self) -> None:
        self.all = True
        self.roots: frozenset[int] = frozenset()


def watch_forward(events: Events, wanted: Wanted) -> Callable[[], None]:
    """Send the forward calls of modules that are `wanted` to `events`, until the returned function is called.

    `events` is told in the thread that trains, where gradients are on.
    """
    thread, forks = threading.get_ident(), _Forks.count

    def forward(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        # A data worker that was forked off has the hook, too: it may call modules, as transforms.
        if (
            (wanted.all or id(module) in wanted.roots)
            and torch.is_grad_enabled()
            and (_Forks.count, threading.get_ident()) == (forks, thread)
            and not torch.compiler.is_compiling()
        ):
            events.forward(module, args, {})

    return torch.nn.modules.module.register_module_forward_pre_hook(forward).remove


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    stack.callback(setattr, owner, name, original)


def _patch_scaler(stack: contextlib.ExitStack) -> dict[int, tuple[Any, Any]]:
    """Remember the loss behind a scaled loss, so that the true one is recorded."""
    scaled: dict[int, tuple[Any, Any]] = {}
    stack.callback(scaled.clear)

    def make(original: Callable) -> Callable:
        @functools.wraps(original)
        def scale(self: Any, outputs: Any) -> Any:
            result = original(self, outputs)
            if isinstance(outputs, torch.Tensor):
                scaled.clear()
                scaled[id(result)] = (result, outputs.detach())
            return result

        return scale

    _replace(stack, torch.amp.GradScaler, "scale", make)
    return scaled


def _patch_backward(  # noqa: C901  two wrappers that share a flag, flat inside
    stack: contextlib.ExitStack, guard: _Guard, scaled: dict[int, tuple[Any, Any]]
) -> None:
    def true_loss(loss: Any) -> Any:
        return scaled[id(loss)][1] if id(loss) in scaled else loss

    def tell(losses: Any) -> None:
        events = guard.open()
        if events is not None:
            each = tuple(losses) if isinstance(losses, (list, tuple)) else (losses,)
            events.backward(tuple(map(true_loss, each)) if scaled else each)

    inside = [False]  # `Tensor.backward` calls `torch.autograd.backward`: one call, told once

    def method(original: Callable) -> Callable:
        @functools.wraps(original)
        def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            outer, inside[0] = inside[0], True
            try:
                result = original(self, *args, **kwargs)
            finally:
                inside[0] = outer
            tell(self)
            return result

        return backward

    def function(original: Callable) -> Callable:
        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(tensors, *args, **kwargs)
            if not inside[0]:
                tell(tensors)
            return result

        return backward

    _replace(stack, torch.Tensor, "backward", method)
    _replace(stack, torch.autograd, "backward", function)


def _patch_fetch(stack: contextlib.ExitStack, guard: _Guard) -> None:
    def make(original: Callable) -> Callable:
        @functools.wraps(original)
        def fetch(self: Any) -> Any:
            events = guard.open(trains=False) if torch.is_grad_enabled() else None
            if events is None:
                return original(self)
            return events.fetch(self, functools.partial(original, self))

        return fetch

    _replace(stack, dataloader._BaseDataLoaderIter, "__next__", make)
