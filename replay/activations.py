"""What each module gives in one step, and each sample's loss, looked at while that step is re-executed.

Where gradients are on, in the thread that trains; copies, up to ROOM in all. Of the losses those are seen that are called through
`torch.nn.functional` (`F.cross_entropy(...)`, `nn.CrossEntropyLoss()`), not what a program imported by its name before the step
(`from torch.nn.functional import cross_entropy`), nor what it works out by itself. Compiled code is as it is without us: while it
runs nothing is put on, and what its modules give is not seen.
Room: replay. May touch: torch's global forward hooks and LOSSES of `torch.nn.functional`, from `begin` to `end`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.modules import module as modules

from tracer import compiled
from tracer.values import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle

ROOM = 256 << 20
LOSSES = (
    "cross_entropy",
    "nll_loss",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "kl_div",
)

Part = tuple[tuple[str, ...], torch.Tensor]


@dataclass(frozen=True)
class Watched:
    """What was seen of one step, by name; of a name's several calls the last has the name, those before `name#1`, `name#2` ...

    `sample_losses` are [B] each: with `reduction="none"` (weighted where the loss is), averaged over all but the first dimension.
    """

    activations: dict[str, torch.Tensor] = field(default_factory=dict)
    sample_losses: dict[str, torch.Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What was not kept, in words."""


class Watch:
    """Sees what the modules and the loss functions give from `begin` to `end`."""

    def __init__(self) -> None:
        """Nothing is put on yet."""
        self._here = (0, 0)
        self._putting = contextlib.ExitStack()
        self._watching = contextlib.ExitStack()
        self._inside = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was seen: the step begins only now."""
        self._calls: dict[int, tuple[torch.nn.Module, list[list[Part]]]] = {}
        self._losses: dict[str, list[torch.Tensor]] = {}
        self._left_out: dict[str, None] = {}
        self._room = ROOM

    def begin(self) -> None:
        """From now on look at what this thread of this process does."""
        self.end()
        self.clear()
        self._here, self._inside = (os.getpid(), threading.get_ident()), 0
        self._watching.callback(compiled.watch(self._entered))
        self._put_on()

    def end(self) -> None:
        """Take everything off; what was seen stays."""
        self._watching.close()
        self._putting.close()

    def _put_on(self) -> None:
        handle = modules.register_module_forward_hook(self._gave)
        self._putting.callback(handle.remove)
        # torch.compile warns of global hooks: this one is not there when it matters.
        counted = modules._has_any_global_hook
        self._putting.callback(setattr, modules, "_has_any_global_hook", counted)
        modules._has_any_global_hook = functools.partial(_without, handle, counted)
        for name in LOSSES:
            original = getattr(functional, name)
            self._putting.callback(setattr, functional, name, original)
            setattr(functional, name, self._watched_loss(name, original))

    def _entered(self) -> Callable[[], None] | None:
        """Compiled code begins to run."""
        if self._here != (os.getpid(), threading.get_ident()):
            return None
        self._inside += 1
        self._putting.close()
        self._left_out["compiled code: what its modules give is not seen"] = None
        return self._left

    def _left(self) -> None:
        self._inside -= 1
        if not self._inside and self._watching._exit_callbacks:
            self._put_on()

    def _listening(self) -> bool:
        # A wrapped function may outlive the step in a variable of the program's, the hook in a worker that was forked.
        on = bool(self._putting._exit_callbacks)
        return on and torch.is_grad_enabled() and self._here == (os.getpid(), threading.get_ident())

    # -- what is seen --------------------------------------------------------------------------------------------------

    def _gave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._listening():
            whose = type(module).__name__
            copies = [(path, self._copied(tensor, whose)) for path, tensor in _tensors(output)]
            parts = [(path, copy) for path, copy in copies if copy is not None]
            self._calls.setdefault(id(module), (module, []))[1].append(parts)

    def _copied(self, tensor: torch.Tensor, whose: str) -> torch.Tensor | None:
        """A copy; None where it is not kept, which is then said."""
        why = "inside a function transform" if torch._C._functorch.is_functorch_wrapped_tensor(tensor) else None
        why = why or refusal(tensor)
        if why is None and tensor.nbytes > self._room:
            why = f"{tensor.nbytes / 1e6:.3g} MB, more than is left of the {ROOM >> 20} MB that are kept"
        if why is not None:
            self._left_out[f"{whose} {list(tensor.shape)}: {why}"] = None
            return None
        self._room -= tensor.nbytes
        with torch.no_grad():
            return tensor.detach().to("cpu", copy=True)

    def _watched_loss(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def loss(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._listening():
                self._note_loss(name, original, signature.bind(*args, **kwargs).arguments)
            return result

        return loss

    def _note_loss(self, name: str, original: Callable[..., Any], given: dict[str, Any]) -> None:
        given = {n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        for old in ("size_average", "reduce"):
            given.pop(old, None)
        try:
            with torch.no_grad():
                each = original(**{**given, "reduction": "none"})
                copy = self._copied(each.flatten(1).mean(1) if each.ndim > 1 else each.reshape(-1), name)
        except Exception as error:  # noqa: BLE001  the program's own call went well: this one is only not seen
            self._left_out[f"{name}: {error}"] = None
        else:
            if copy is not None:
                self._losses.setdefault(name, []).append(copy)

    # -- what was seen -------------------------------------------------------------------------------------------------

    def seen(self, names: Mapping[int, str]) -> Watched:
        """Return it; `names` are those of the modules, by id. One that has none is called by its class."""
        activations: dict[str, torch.Tensor] = {}
        nameless: Counter[str] = Counter()
        for number, (module, calls) in self._calls.items():
            name = names.get(number)
            if name is None:
                kind = type(module).__name__
                nameless[kind] += 1
                name = f"<{kind}>" if nameless[kind] == 1 else f"<{kind} {nameless[kind]}>"
            for call, tensors in _called(name, calls):
                for path, tensor in tensors:
                    key = ".".join((call, *path))
                    activations[key if not path or key not in names.values() else f"{call}[{']['.join(path)}]"] = tensor
        losses = {call: each for name, calls in self._losses.items() for call, each in _called(name, calls)}
        return Watched(activations, losses, list(self._left_out))


def _tensors(value: Any, path: tuple[str, ...] = ()) -> Iterator[Part]:
    """The tensors of what a module gave, with their places in it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (tuple, list, Mapping)):
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in inner:
            yield from _tensors(each, (*path, str(key)))


def _called(name: str, calls: list[Any]) -> list[tuple[str, Any]]:
    """Each call by its name: the last has that of the thing itself."""
    return [(f"{name}#{i}" if i < len(calls) else name, call) for i, call in enumerate(calls, 1)]


def _without(handle: RemovableHandle, count: Callable[[], Any]) -> Any:
    """What `count` says where the hook of `handle` is not there."""
    own = modules._global_forward_hooks.pop(handle.id, None)
    try:
        return count()
    finally:
        if own is not None:
            modules._global_forward_hooks[handle.id] = own
