"""Where torch.compile meets Rewind: dynamo sees nothing of ours, and what is compiled is what it would be without us.

What Rewind puts on runs outside of dynamo's sight (`unseen`, `passing`), and while compiled code runs, the one hook that dynamo would
find on every module is not there: a recorder is told where compiled code is entered instead (`watch`).
Room: tracer. May touch: `torch.compile` and dynamo's contexts while `noticed` lasts; no code of the program's.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import getpass
import os
import re
import sys
import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch._C._dynamo import eval_frame

from tracer import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Enter = Callable[[], Callable[[], None] | None]
    """Called where compiled code is entered; what it returns is called where that is left."""


_FEW = 64


def passing(function: Callable) -> Callable:
    """Return `function`: its own frame is not compiled, what it calls is as ever; where it would be traced, the graph ends."""
    _skip(function)
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


def unseen(function: Callable) -> Callable:
    """Return `function` as dynamo does not see it, nor anything that it calls."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = eval_frame.set_eval_frame(None)
        if before is None:
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        finally:
            eval_frame.set_eval_frame(before)

    return passing(call)


def _skip(function: Callable) -> None:
    code = function.__code__
    if hasattr(eval_frame, "_FrameExecStrategy"):
        skip, default = eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
        eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(skip, default))
    else:
        eval_frame.skip_code(code)


def when_traced(tell: Callable[[], None]) -> Callable[[], bool]:
    """Return a function that dynamo itself calls where it traces a call of it, and never what it compiles: it calls `tell`."""

    def traced() -> bool:
        tell()
        return True

    traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return traced


class _Entrances:
    """Who wants to know where compiled code is entered."""

    wanted: list[Enter] = []
    contexts: weakref.WeakSet[Any] = weakref.WeakSet()
    compilations = 0


class History:
    """At which steps something was compiled: which kernels a later step runs depends on what came before it."""

    def __init__(self) -> None:
        self._count = _Entrances.compilations
        self.steps: list[int] = []

    def note(self, step: int) -> None:
        """Step `step` is over."""
        if self._count != _Entrances.compilations:
            self._count = _Entrances.compilations
            self.steps.append(step)


def cache_folder() -> str:
    """Where inductor keeps what it has compiled."""
    user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") or os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


def watch(enter: Enter) -> Callable[[], None]:
    """Call `enter` wherever compiled code is entered, until the returned function is called."""
    _Entrances.wanted.append(enter)
    return functools.partial(_Entrances.wanted.remove, enter)


def _entered() -> Callable[[], None]:
    leaving = [leave for enter in list(_Entrances.wanted) if (leave := enter()) is not None]

    def left() -> None:
        for leave in leaving:
            leave()

    return left


def arguments() -> tuple[Any, ...]:
    """The tensors, and the containers of them, that the compiled function is called with that is being entered (by `enter`)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.endswith("eval_frame.py"):
        frame = frame.f_back
    while frame is not None and "args" not in frame.f_code.co_varnames:  # a comprehension of its own, before 3.12
        frame = frame.f_back
    given = {} if frame is None else frame.f_locals
    values = (*given.get("args", ()), *given.get("kwargs", {}).values())
    return tuple(v for v in values if isinstance(v, (torch.Tensor, list, tuple, dict)) and walk.is_plain(v, _FEW))


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """See to it, while the block runs, that `watch` knows of every compiled function."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo.eval_frame" in sys.modules:
            _notice(stack)
        else:  # It takes a second to load, and the program may never want it.
            compile_ = torch.compile
            torch.compile = _loading(compile_, stack)
            stack.callback(setattr, torch, "compile", compile_)
        yield


def _loading(original: Callable, stack: contextlib.ExitStack) -> Callable:
    @functools.wraps(original)
    def compile_(*args: Any, **kwargs: Any) -> Any:
        import torch._dynamo.eval_frame  # noqa: PLC0415  torch.compile does so itself

        torch.compile = original
        _notice(stack)
        return original(*args, **kwargs)

    return passing(compile_)


def _notice(stack: contextlib.ExitStack) -> None:
    from torch._dynamo import callback  # noqa: PLC0415  it is loaded
    from torch._dynamo import eval_frame as dynamo  # noqa: PLC0415

    kind = dynamo._TorchDynamoContext
    original = kind.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _add(self)

    kind.__init__ = init
    stack.callback(setattr, kind, "__init__", original)
    stack.callback(_forget)
    handler = callback.callback_handler
    handler.register_start_callback(_compiles)
    stack.callback(_off, handler)
    if any(backend is not None for backend in getattr(dynamo, "cached_backends", {None: True}).values()):
        for found in gc.get_objects():
            if issubclass(type(found), kind):
                _add(found)


def _compiles(*args: Any) -> None:
    _Entrances.compilations += 1


def _off(handler: Any) -> None:
    with contextlib.suppress(ValueError):  # the program may have taken off all
        handler.remove_start_callback(_compiles)


def _add(context: Any) -> None:
    if context.callback is not None and _entered not in context.enter_exit_hooks:
        context.enter_exit_hooks.append(_entered)
        _Entrances.contexts.add(context)


def _forget() -> None:
    for context in list(_Entrances.contexts):
        with contextlib.suppress(ValueError):
            context.enter_exit_hooks.remove(_entered)
    _Entrances.contexts.clear()
