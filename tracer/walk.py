"""The program's own state at a step boundary, found by walking from its frames: one `Slot` for each thing that can be recorded.

A slot's path is the same in every run of the same code, so that the walk of a replayed program finds the counterpart of each
recorded slot. Followed are: live variables, closure cells, generators and their frames, loop iterators, attributes of objects
whose class is the user's own or of a library that may drive a loop, list and dict items that hold such things, hooks on modules,
module-level variables of the user's files.
Room: tracer. Reads the program; changes nothing (a slot's `put` does, when called).
"""

from __future__ import annotations

import datetime
import enum
import functools
import gc
import inspect
import logging
import pathlib
import re
import sys
import threading
import types
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer import columns, frames, iterators
from tracer.rng import GENERATOR_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracer.frames import UserFrame

MAX_SLOTS = 20_000
MAX_ITEMS = 4096
MAX_DEPTH = 12
_PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, np.generic),
    *(enum.Enum, pathlib.Path),
)
_SKIPPED = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, property, staticmethod, classmethod)
_WRAPPERS = (zip, map, filter, reversed)
_MODULE_INTERNALS = frozenset(torch.nn.Module().__dict__)
_LOWEST_ID, _HIGHEST_ID = 1 << 44, 1 << 47
_LOADER_INTERNALS = frozenset(torch.utils.data.DataLoader([0]).__dict__) | {"_iterator"}


@dataclass(frozen=True)
class Slot:
    """One thing found. `kind`: value, generator, stateful, iterator, module, optimizer or opaque."""

    path: str
    kind: str
    value: Any
    put: Callable[[Any], None] | None = None


@dataclass
class _Walk:
    slots: list[Slot] = field(default_factory=list)
    seen: dict[int, str] = field(default_factory=dict)
    keep: list[Any] = field(default_factory=list)

    def add(self, slot: Slot) -> None:
        self.slots.append(slot)


def walk(stack: list[UserFrame]) -> list[Slot]:
    """Return the slots of the program whose frames are `stack` (innermost first), outermost first."""
    state = _Walk()
    modules = _user_modules(stack)
    # The user's own come first: where there is more than can be followed, it is a library's.
    outermost_first = stack[::-1]
    for user in sorted(outermost_first, key=lambda user: not frames.is_user_file(user.frame.f_code.co_filename)):
        _visit_frame(state, user)
    for user in stack:
        if user.is_module:
            _visit_iterators(state, f"{user.name}()", user.frame)
    for name, namespace in modules:
        live = _module_live(stack, namespace)
        for key, value in list(namespace.items()):
            if not key.startswith("__") and (live is None or key in live):
                _visit(state, f"{name}:{key}", value, functools.partial(namespace.__setitem__, key), 0)
    if len(state.slots) >= MAX_SLOTS:
        state.add(Slot(f"what comes after {MAX_SLOTS} things", "opaque", state))
    return state.slots


def _module_live(stack: list[UserFrame], namespace: dict[str, Any]) -> set[str] | None:
    for user in stack:
        if user.is_module and user.frame.f_globals is namespace:
            return set(frames.live_locals(user.frame))
    return None


def _user_modules(stack: list[UserFrame]) -> list[tuple[str, dict[str, Any]]]:
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    for user in stack:
        namespace = user.frame.f_globals
        if not frames.is_user_file(user.frame.f_code.co_filename):
            continue
        found[id(namespace)] = (str(namespace.get("__name__", "?")), namespace)
    roots = {_folder(n.get("__file__")) for _, n in found.values()} - {None}
    for name, namespace, file in _imported():
        if id(namespace) not in found and _under(file, roots):
            found[id(namespace)] = (name, namespace)
    return list(found.values())


_imports: dict[tuple[int, int], list[tuple[str, dict[str, Any], str]]] = {}


def _imported() -> list[tuple[str, dict[str, Any], str]]:
    """The imported modules of the user's: among thousands that seldom change in number, looked for at every step."""
    key = (len(sys.modules), len(frames._programs))
    if key not in _imports:
        files = [(n, getattr(m, "__dict__", {}), getattr(m, "__file__", None)) for n, m in list(sys.modules.items())]
        _imports.clear()
        _imports[key] = [(n, d, f) for n, d, f in files if f and frames.is_user_file(f)]
    return _imports[key]


def _folder(file: str | None) -> str | None:
    return file.rpartition("/")[0] if file else None


def _under(file: str, roots: set[str | None]) -> bool:
    return any(root is not None and file.startswith(root + "/") for root in roots)


def _visit_frame(state: _Walk, user: UserFrame) -> None:
    if user.is_module:
        return
    for name, value in frames.live_locals(user.frame).items():
        _visit(state, f"{user.name}.{name}", value, functools.partial(frames.put_local, user.frame, name), 0)
    _visit_iterators(state, user.name, user.frame)


def _visit_iterators(state: _Walk, path: str, frame: types.FrameType) -> None:
    for i, iterator in enumerate(frames.loop_iterators(frame)):
        _visit_iterator(state, f"{path}~{i}", iterator, 0)


def _visit_iterator(state: _Walk, path: str, iterator: Any, depth: int) -> None:
    if id(iterator) in state.seen or depth > MAX_DEPTH or isinstance(iterator, (types.BuiltinFunctionType, str)):
        return
    if isinstance(iterator, types.GeneratorType):
        _visit_generator(state, path, iterator, depth)
        return
    state.seen[id(iterator)] = path
    state.keep.append(iterator)
    # What it goes through comes first: a position is only taken within it.
    if isinstance(iterator, iterators.POSITIONED) and (items := iterators.sequence(iterator)) is not None:
        put = functools.partial(iterators.put_sequence, iterator)
        _visit(state, f"{path}[]", items, put, depth + 1)
    if type(iterator) not in _WRAPPERS and not _is_bypassed(iterator):
        state.add(Slot(path, "iterator", iterator))
    if isinstance(iterator, (enumerate, *_WRAPPERS)):
        _visit_wrapped(state, path, iterator, depth)


def _visit_wrapped(state: _Walk, path: str, iterator: Any, depth: int) -> None:
    found = gc.get_referents(iterator)
    inner = [item for ref in found for item in (ref if isinstance(ref, tuple) else (ref,))]
    for i, item in enumerate(inner):
        if hasattr(item, "__next__"):
            _visit_iterator(state, f"{path}~{i}", item, depth + 1)


def _is_bypassed(iterator: Any) -> bool:
    """A DataLoader's iterator: its batches are recorded, its place is not needed."""
    return isinstance(iterator, torch.utils.data.dataloader._BaseDataLoaderIter) or not hasattr(iterator, "__next__")


def _visit_generator(state: _Walk, path: str, generator: types.GeneratorType, depth: int) -> None:
    if id(generator) in state.seen or generator.gi_frame is None:
        return
    state.seen[id(generator)] = path
    state.keep.append(generator)
    frame = generator.gi_frame
    if generator.gi_running or depth > MAX_DEPTH:
        return
    if frames.is_followed(frame.f_code.co_filename):
        for name, value in frames.live_locals(frame).items():
            put = functools.partial(frames.put_local, frame, name)
            _visit(state, f"{path}.{name}", value, put, depth + 1)
    for i, iterator in enumerate(frames.loop_iterators(frame)):
        _visit_iterator(state, f"{path}~{i}", iterator, depth + 1)


def is_plain(value: Any, budget: int = MAX_ITEMS) -> bool:
    """Whether `value` is data all through: numbers, strings, tensors, arrays and containers of them (at most `budget` items)."""
    if isinstance(value, (*_PLAIN, np.ndarray)):
        return not (isinstance(value, np.ndarray) and value.dtype.hasobject)
    if isinstance(value, torch.Tensor):
        return not isinstance(value, torch.nn.Parameter)
    if isinstance(value, dict):
        fits = len(value) <= budget and not _keyed_by_ids(value)
        return fits and all(is_plain(k, 8) and is_plain(v, budget) for k, v in value.items())
    if budget >= MAX_ITEMS and columns.is_long(value):
        return _are_plain(value)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return len(value) <= budget and all(is_plain(v, budget) for v in value)
    return isinstance(value, slice)


def _are_plain(items: Sequence[Any]) -> bool:
    """Whether all of many items are data; asked of each kind, and of each place in records, not of each item."""
    kinds = set(map(type, items))
    return all(_is_plain_kind(kind, items if len(kinds) == 1 else _of_kind(items, kind)) for kind in kinds)


def _of_kind(items: Sequence[Any], kind: type) -> list[Any]:
    return [item for item in items if type(item) is kind]


def _is_plain_kind(kind: type, items: Sequence[Any]) -> bool:
    if kind is torch.Tensor or issubclass(kind, _PLAIN):
        return True
    if kind is np.ndarray:
        return not any(item.dtype.hasobject for item in items)
    if issubclass(kind, (list, tuple)) and len(set(map(len, items))) == 1:
        return all(_are_plain(place) for place in zip(*items, strict=True))
    return all(map(is_plain, items))


def _keyed_by_ids(value: Any) -> bool:
    """Whether a dict's keys are addresses (what `id` gives), which say something in this process alone."""
    first = next(iter(value), None) if isinstance(value, dict) else None
    return type(first) is int and _LOWEST_ID < first < _HIGHEST_ID and first % 8 == 0


def _visit(state: _Walk, path: str, value: Any, put: Callable[[Any], None] | None, depth: int) -> None:
    if depth > MAX_DEPTH or len(state.slots) >= MAX_SLOTS or isinstance(value, _SKIPPED):
        return
    if isinstance(value, _PLAIN):
        state.add(Slot(path, "value", value, put))
        return
    if id(value) in state.seen:
        state.add(Slot(path, "same", state.seen[id(value)], put))
        return
    if isinstance(value, types.GeneratorType):
        _visit_generator(state, path, value, depth)
        return
    if isinstance(value, (*iterators.POSITIONED, *iterators.UNPLACED, *_WRAPPERS)):
        _visit_iterator(state, path, value, depth)
        return
    state.seen[id(value)] = path
    state.keep.append(value)
    for test, visitor in _VISITORS:
        if test(value):
            visitor(state, path, value, put, depth)
            return
    state.add(Slot(path, "opaque", value))


def _visit_function(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    # What `torch.compile` makes of a function is torch's own.
    value = getattr(value, "_torchdynamo_orig_callable", value)
    if isinstance(value, types.MethodType):
        _visit(state, f"{path}.__self__", value.__self__, None, depth + 1)
        value = value.__func__
    if isinstance(value, functools.partial):
        _visit(state, f"{path}.func", value.func, None, depth + 1)
        for i, item in enumerate((*value.args, *value.keywords.values())):
            _visit(state, f"{path}.args[{i}]", item, None, depth + 1)
        return
    code = getattr(value, "__code__", None)
    if code is None or not frames.is_followed(code.co_filename):
        return
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=False):
        if id(cell) not in state.seen and _filled(cell):
            state.seen[id(cell)] = path
            state.keep.append(cell)
            _visit(state, f"{path}.<{name}>", cell.cell_contents, functools.partial(_put_cell, cell), depth + 1)


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  asking is the test: an empty cell raises
    except ValueError:
        return False
    return True


def _put_cell(cell: types.CellType, value: Any) -> None:
    cell.cell_contents = value


def _visit_module(state: _Walk, path: str, module: torch.nn.Module, put: Any, depth: int) -> None:
    state.add(Slot(path, "module", module))
    for name, child in module.named_modules():
        inner = f"{path}.{name}" if name else path
        state.seen.setdefault(id(child), inner)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            for i, hook in enumerate(getattr(child, hooks, {}).values()):
                _visit(state, f"{inner}.{hooks}[{i}]", hook, None, depth + 1)
        if frames.is_followed(_file_of(type(child))):
            _visit_attributes(state, inner, child, depth, _MODULE_INTERNALS)


def _is_compiled(value: Any) -> bool:
    return type(value).__module__ == "torch._dynamo.eval_frame" and isinstance(value, torch.nn.Module)


def _visit_compiled(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    """What `torch.compile` makes of a module has nothing of its own."""
    _visit(state, path, value._orig_mod, None, depth)


def _visit_optimizer(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    """One of a kind of its own may count, keep tensors, or have another inside that does the work."""
    state.add(Slot(path, "optimizer", value))
    if frames.is_followed(_file_of(type(value))):
        _visit_attributes(state, path, value, depth, _optimizer_internals())


@functools.cache
def _optimizer_internals() -> frozenset[str]:
    """What every optimizer has; made when it is asked for, as the first optimizer of a process loads dynamo: a second and more."""
    return frozenset(torch.optim.SGD([torch.zeros(1)], lr=0.1).__dict__) | {"step", "zero_grad"}


def _visit_generator_object(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    state.add(Slot(path, "generator", value))


def _visit_stateful(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    state.add(Slot(path, "stateful", value))


def _visit_plain(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    state.add(Slot(path, "value", value, put))


def _visit_items(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    if len(value) > MAX_ITEMS:
        state.add(Slot(path, "opaque", value))
        return
    if isinstance(value, dict):
        for key, item in list(value.items()):
            if isinstance(key, (str, int)):
                _visit(state, f"{path}[{key!r}]", item, functools.partial(value.__setitem__, key), depth + 1)
        return
    for i, item in enumerate(value):
        setter = functools.partial(value.__setitem__, i) if isinstance(value, list) else None
        _visit(state, f"{path}[{i}]", item, setter, depth + 1)


def _visit_loader(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    for name in ("generator", "sampler", "batch_sampler"):
        inner = getattr(value, name, None)
        if isinstance(inner, GENERATOR_TYPES):
            _visit(state, f"{path}.{name}", inner, None, depth + 1)
        elif inner is not None and isinstance(getattr(inner, "generator", None), GENERATOR_TYPES):
            _visit(state, f"{path}.{name}.generator", inner.generator, None, depth + 1)
    if frames.is_followed(_file_of(type(value))):
        _visit_attributes(state, path, value, depth, _LOADER_INTERNALS)


def _visit_object(state: _Walk, path: str, value: Any, put: Any, depth: int) -> None:
    _visit_attributes(state, path, value, depth, frozenset())


def _visit_attributes(state: _Walk, path: str, value: Any, depth: int, skipped: frozenset[str]) -> None:
    for name, item in _attributes(value):
        if name not in skipped:
            setter = functools.partial(object.__setattr__, value, name)
            _visit(state, f"{path}.{name}", item, setter, depth + 1)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _file_of(cls: type) -> str:
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or ("<stdin>" if cls.__module__ == "__main__" else "<unknown>")


def _is_stateful(value: Any) -> bool:
    """Asks the class: a `__getattr__` of the object may answer anything, or begin something."""
    return _owner(value, "state_dict") is not None and _owner(value, "load_state_dict") is not None


def _owner(value: Any, name: str) -> type | None:
    return next((cls for cls in type(value).__mro__ if name in cls.__dict__), None)


def _is_own_stateful(value: Any) -> bool:
    """Whether the user wrote `state_dict` themselves: then all attributes are taken, which is at least as much."""
    owner = _owner(value, "state_dict")
    return owner is not None and frames.is_followed(_file_of(owner))


def _is_user_object(value: Any) -> bool:
    cls = type(value)
    if cls is types.SimpleNamespace or f"{cls.__module__}.{cls.__name__}" == "argparse.Namespace":
        return True
    if isinstance(value, torch.utils.data.Dataset) and cls.__module__.startswith("torch."):
        return True
    return frames.is_followed(_file_of(cls))


def _only_shows(value: Any) -> bool:
    """Whether it is a library's progress bar, logger or profiler, or the user's own kind of one: how far it is, no replay needs."""
    modules = [cls.__module__ for cls in type(value).__mro__]
    if any(module.partition(".")[0] in frames.SHOWING for module in modules):
        return True
    shows = any(part in f"{modules[0]}." for part in _SHOWING_PARTS)
    return shows and not frames.is_user_file(_file_of(type(value)))


def _is_bypassed_loader(value: Any) -> bool:
    return isinstance(value, torch.utils.data.dataloader._BaseDataLoaderIter)


_STATELESS = (
    *(torch.utils.hooks.RemovableHandle, torch.autograd.graph.Node, torch.autocast, torch.set_grad_enabled),
    *(range, re.Pattern, datetime.date, datetime.timedelta, datetime.tzinfo, weakref.ref, types.GenericAlias),
    *(inspect.Signature, inspect.Parameter, types.MappingProxyType),
    *(logging.Logger, logging.Handler, threading.Thread, threading.Event, type(threading.Lock())),
    *(type(threading.RLock()), functools._lru_cache_wrapper),
)
"""What never changes, or has no state of the training worth a note."""


_SHOWING_PARTS = (".loggers.", ".logger.", ".tracking.", ".callbacks.progress.", ".profilers.", ".integrations.")
_VISITORS: tuple[tuple[Callable[[Any], bool], Callable[..., None]], ...] = (
    (_is_compiled, _visit_compiled),
    (lambda v: isinstance(v, torch.nn.Module), _visit_module),
    (lambda v: isinstance(v, torch.optim.Optimizer), _visit_optimizer),
    (lambda v: isinstance(v, GENERATOR_TYPES), _visit_generator_object),
    (is_plain, _visit_plain),
    (lambda v: isinstance(v, (types.FunctionType, types.MethodType, functools.partial)), _visit_function),
    (lambda v: isinstance(v, torch.utils.data.DataLoader), _visit_loader),
    (lambda v: isinstance(v, _STATELESS) or _is_bypassed_loader(v) or _only_shows(v), lambda *ignored: None),
    (_keyed_by_ids, lambda *ignored: None),
    (lambda v: _is_stateful(v) and not _is_own_stateful(v), _visit_stateful),
    (lambda v: isinstance(v, (list, tuple, dict, deque)), _visit_items),
    (_is_user_object, _visit_object),
)
