"""The modules and optimizers of a program, the names of their tensors, and the packed layout in which states are stored.

Names are those of `state_dict()`. Where one module alone owns what the optimizers change, its tensors have no prefix;
every other module's have the name of its variable before them.
Room: tracer. Reads the program; changes nothing.
"""

from __future__ import annotations

import gc
import logging
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from tracer.packing import Entry
from tracer.values import dtype_name, refusal, tensor_bytes

if TYPE_CHECKING:
    from tracer.walk import Slot

_ALIGNMENT = 8
_log = logging.getLogger("rewind")


@dataclass(frozen=True)
class Layout:
    """How a state is packed: entries at multiples of 8 bytes, gaps zero, `nbytes` a multiple of `word`."""

    id: int
    entries: tuple[Entry, ...]
    nbytes: int
    word: int
    digest: int

    def header(self) -> dict[str, Any]:
        """Return the layout record of a tail."""
        entries = [{**vars(e), "shape": list(e.shape)} for e in self.entries]
        return {"kind": "layout", "layout": self.id, "word": self.word, "nbytes": self.nbytes, "entries": entries}


@dataclass(frozen=True)
class Registry:
    """The live tensors that make up the state, by name, and the optimizers by the path at which they were found."""

    modules: dict[str, torch.nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    tensors: dict[str, torch.Tensor]
    params: frozenset[str]
    aliases: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    """Tensors of the state whose bytes do not say what they are: {name: why}."""
    unmade: tuple[torch.Tensor, ...] = ()
    """Parameters and buffers of lazy modules that have seen no batch yet: they are no state before."""

    def name_of(self) -> dict[int, str]:
        """Return {id(tensor): name}."""
        return {id(t): name for name, t in self.tensors.items()}


def build(slots: list[Slot], optimizers: list[torch.optim.Optimizer]) -> Registry:
    """Name the state of the program whose walk gave `slots`; `optimizers` are those that were seen stepping."""
    found = {s.path: s.value for s in slots if s.kind == "optimizer"}
    for optimizer in optimizers:
        if all(optimizer is not known for known in found.values()):
            found[f"<optimizer {len(found)}>"] = optimizer
    trained = {id(p) for o in found.values() for g in o.param_groups for p in g["params"]}
    modules = _roots([(s.path, s.value) for s in slots if s.kind == "module"])
    modules += _unseen_owners(modules, trained)
    prefixes = _prefixes(modules, trained)
    tensors: dict[str, torch.Tensor] = {}
    params: set[str] = set()
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for (_, module), prefix in zip(modules, prefixes, strict=True):
        _add_module(module, prefix, tensors, params, aliases, names)
    _add_loose(found, tensors, params, names)
    left_out = {name: why for name, tensor in tensors.items() if (why := refusal(tensor)) is not None}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    unmade = tuple(t for _, m in modules for t in (*m.parameters(), *m.buffers()) if _is_unmade(t))
    return Registry(dict(modules), found, tensors, frozenset(params - left_out.keys()), aliases, left_out, unmade)


def module_names(registry: Registry) -> dict[int, str]:
    """Return {id(module): its path}, named as the tensors are; the one that owns all that is trained is `<model>`."""
    trained = {id(p) for o in registry.optimizers.values() for g in o.param_groups for p in g["params"]}
    roots = list(registry.modules.items())
    names: dict[int, str] = {}
    for (_, root), prefix in zip(roots, _prefixes(roots, trained), strict=True):
        for path, module in root.named_modules():
            names.setdefault(id(module), (prefix + path).rstrip(".") or "<model>")
    return names


def _roots(modules: list[tuple[str, torch.nn.Module]]) -> list[tuple[str, torch.nn.Module]]:
    inner = {id(child) for _, m in modules for child in m.modules() if child is not m}
    return [(path, m) for path, m in modules if id(m) not in inner]


def _unseen_owners(modules: list[tuple[str, torch.nn.Module]], trained: set[int]) -> list[tuple[str, torch.nn.Module]]:
    """Modules that own trained parameters and are reachable from no frame: looked for once, among all live objects."""
    owned = {id(p) for _, m in modules for p in m.parameters()}
    if trained <= owned:
        return []
    missing = trained - owned
    owners = [o for o in gc.get_objects() if issubclass(type(o), torch.nn.Module)]
    owners = [o for o in owners if any(id(p) in missing for p in o.parameters())]
    return [(f"<module {i}>", m) for i, (_, m) in enumerate(_roots([("", o) for o in owners]))]


def _prefixes(modules: list[tuple[str, torch.nn.Module]], trained: set[int]) -> list[str]:
    mains = [m for _, m in modules if any(id(p) in trained for p in m.parameters())]
    used: dict[str, int] = {}
    prefixes = []
    for path, module in modules:
        if len(mains) == 1 and module is mains[0]:
            prefixes.append("")
            continue
        name = re.sub(r"\W+", "", re.split(r"[.:\[]", path)[-1]) or "module"
        used[name] = used.get(name, 0) + 1
        prefixes.append(f"{name}." if used[name] == 1 else f"{name}_{used[name]}.")
    return prefixes


def _add_module(  # noqa: PLR0917  the four tables that are being filled belong together
    module: torch.nn.Module,
    prefix: str,
    tensors: dict[str, torch.Tensor],
    params: set[str],
    aliases: dict[str, str],
    names: dict[int, str],
) -> None:
    both = [(n, p, True) for n, p in module.named_parameters(remove_duplicate=False)]
    both += [(n, b, False) for n, b in module.named_buffers(remove_duplicate=False)]
    for name, tensor, is_param in both:
        full = prefix + name
        if id(tensor) in names:
            aliases[full] = names[id(tensor)]
        elif not _is_unmade(tensor):
            names[id(tensor)] = full
            tensors[full] = tensor
            if is_param:
                params.add(full)


def _is_unmade(tensor: torch.Tensor) -> bool:
    """Whether it belongs to a lazy module that has not seen its first batch yet."""
    return isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin)


def _add_loose(
    optimizers: dict[str, torch.optim.Optimizer],
    tensors: dict[str, torch.Tensor],
    params: set[str],
    names: dict[int, str],
) -> None:
    for optimizer in optimizers.values():
        for i, group in enumerate(optimizer.param_groups):
            for j, param in enumerate(group["params"]):
                if id(param) not in names and not _is_unmade(param):
                    name = f"param.{i}.{j}" if f"param.{i}.{j}" not in tensors else f"param.{len(tensors)}.{i}.{j}"
                    names[id(param)] = name
                    tensors[name] = param
                    params.add(name)


def make_layout(registry: Registry, number: int) -> Layout:
    """Return the packed layout of the registry's tensors, with id `number`."""
    for name, why in registry.left_out.items():
        _log.warning("%s is not recorded, it is %s: a replay cannot put it back", name, why)
    entries = []
    offset = 0
    weight: dict[int, int] = {}
    for name, tensor in registry.tensors.items():
        size = tensor.element_size()
        nbytes = tensor.numel() * size
        shape = tuple(tensor.shape)
        entries.append(Entry(name, dtype_name(tensor.dtype), shape, offset, nbytes, name in registry.params))
        weight[min(size, 8)] = weight.get(min(size, 8), 0) + nbytes
        offset = -(-(offset + nbytes) // _ALIGNMENT) * _ALIGNMENT
    word = max(weight, key=lambda w: weight[w]) if weight else 4
    text = "\n".join(f"{e.name} {e.dtype} {list(e.shape)}" for e in entries)
    return Layout(number, tuple(entries), offset, word, xxhash.xxh3_64_intdigest(text.encode()))


class StateReader:
    """Reads the bytes of the registry's tensors: hashed at every step, written where weights are kept.

    The memory of a parameter seldom moves, so the view on it is made once and checked by its address.
    """

    def __init__(self, registry: Registry, layout: Layout) -> None:
        self.layout = layout
        self.names = [entry.name for entry in layout.entries]
        self._tensors = list(registry.tensors.values())
        self._pointers = [0] * len(self._tensors)
        self._views: list[memoryview] = [memoryview(b"")] * len(self._tensors)
        self._shapes = [torch.Size(entry.shape) for entry in layout.entries]
        self._unmade = registry.unmade

    def views(self) -> list[memoryview]:
        """Return the bytes of each tensor, in the layout's order; they are the live memory where it is contiguous."""
        for i, tensor in enumerate(self._tensors):
            if tensor.data_ptr() != self._pointers[i] or not self._pointers[i]:
                self._views[i] = tensor_bytes(tensor)
                direct = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj()
                self._pointers[i] = tensor.data_ptr() if direct else 0
        return self._views

    def reads(self, registry: Registry) -> bool:
        """Whether these are the tensors of `registry`."""
        return all(a is b for a, b in zip(self._tensors, registry.tensors.values(), strict=False))

    def matches(self) -> bool:
        """Whether the tensors still have the sizes that the layout says, and lazy modules have made no more."""
        for tensor, shape in zip(self._tensors, self._shapes, strict=True):
            if tensor.shape != shape:
                return False
        return not self._unmade or all(map(_is_unmade, self._unmade))

    def fingerprint(self) -> tuple[str, list[int]]:
        """Return (fingerprint, hashes): xxh3_64 of each tensor's bytes, and of all of them with names, dtypes and shapes."""
        hashes = list(map(xxhash.xxh3_64_intdigest, self.views()))
        return combine(self.layout.digest, hashes), hashes

    def packed(self) -> list[memoryview | bytes]:
        """Return the buffers that one after the other are the packed state."""
        buffers: list[memoryview | bytes] = []
        position = 0
        for entry, view in zip(self.layout.entries, self.views(), strict=True):
            if entry.offset > position:
                buffers.append(bytes(entry.offset - position))
            buffers.append(view)
            position = entry.offset + entry.nbytes
        if self.layout.nbytes > position:
            buffers.append(bytes(self.layout.nbytes - position))
        return buffers


def combine(digest: int, hashes: list[int]) -> str:
    """Return the fingerprint of a state from its layout's digest and the hashes of its tensors."""
    return xxhash.xxh3_64_hexdigest(struct.pack(f"<{1 + len(hashes)}Q", digest, *hashes))
