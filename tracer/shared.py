"""Variables whose tensors share memory: with parameters and buffers, or with each other; captured so, and put back so.

`parameters = [w1, b1]` holds the very tensors that the optimizer changes, `flat[:10]` is changed when `flat` is. Put back as
tensors of their own they would part, and the program would go on otherwise. Stored is the memory, once, and each tensor as a
place in it:

    {"memories": [{"nbytes", "device", "of": [name, offset] | null, "b" | "constant"}, ..],
     "tensors": [{"is": name} | {"m": memory, "at": place, "dtype", "shape", "strides", "offset", "leaf"}, ..]}

`of` names the parameter or buffer that lies there, and its offset in bytes; without `b` such tensors fill the memory. In the
values of variables {"$": "shared", "t": i} stands for tensor i.
Room: tracer. `capture` reads the program; `restore` changes it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from tracer import constants, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracer.registry import Registry
    from tracer.walk import Slot

_MOST_ITEMS = 4096
_GRAD = "grad of"
NOTHING: dict[str, list[Any]] = {"memories": [], "tensors": []}
_Members = list[tuple[str, torch.Tensor]]


def tensors_in(place: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a variable's value, each with a name for its place."""
    if isinstance(value, torch.Tensor):
        if (
            value.numel()
            and values.refusal(value) is None
            and not (value.is_conj() or value.is_neg())
            and _memory(value)
        ):
            yield place, value
        return
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list, tuple, deque)) and len(value) <= _MOST_ITEMS:
        for i, item in enumerate(items):
            if isinstance(item, (torch.Tensor, dict, list, tuple, deque)):
                yield from tensors_in(f"{place}[{i}]", item)


def _in_slots(slots: Iterable[Slot]) -> Iterator[tuple[str, torch.Tensor]]:
    for slot in slots:
        if slot.kind == "value":
            yield from tensors_in(slot.path, slot.value)


def _members(slots: Iterable[Slot], registry: Registry) -> Iterator[tuple[str, torch.Tensor]]:
    """What may share memory: variables, and the gradients of parameters."""
    yield from _in_slots(slots)
    for name in registry.params:
        if (grad := registry.tensors[name].grad) is not None:
            yield from tensors_in(f"{_GRAD} {name}", grad)


def _memory(tensor: torch.Tensor) -> int:
    """The address of its memory; 0 where it has none that can be told."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _start(tensor: torch.Tensor) -> int:
    return tensor.storage_offset() * tensor.element_size()


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# -- capturing -----------------------------------------------------------------------------------------------------------------


@dataclass
class Shared:
    """What shares memory at a keyframe: `tree` goes into it; `numbers` has the tensors in it by id."""

    tree: dict[str, list[Any]] = field(default_factory=lambda: {"memories": [], "tensors": []})
    numbers: dict[int, int] = field(default_factory=dict)

    def node(self, tensor: Any) -> Any:
        """Return what stands for `tensor` in the value of a variable; None where it shares nothing."""
        number = self.numbers.get(id(tensor))
        return None if number is None else {"$": "shared", "t": number}

    def touches(self, value: Any) -> bool:
        """Whether something in `value` shares memory."""
        return bool(self.numbers) and any(id(tensor) in self.numbers for _, tensor in tensors_in("", value))

    def add(self, tensor: torch.Tensor, described: dict[str, Any]) -> None:
        """Give `tensor` a number."""
        self.numbers[id(tensor)] = len(self.tree["tensors"])
        self.tree["tensors"].append(described)


def capture(
    slots: list[Slot], registry: Registry, buffers: list[bytes | memoryview], known: constants.Constants
) -> Shared:
    """Return what in `slots` shares memory; what is stored of it goes to the end of `buffers`."""
    shared, owners = Shared(), _owners(registry)
    met: dict[int, _Members] = {}
    for place, tensor in _members(slots, registry):
        met.setdefault(_memory(tensor), []).append((place, tensor))
    for memory, members in met.items():
        if memory in owners:
            others = _name(shared, members, registry.name_of())
            described = _owned({name: registry.tensors[name] for name in owners[memory]}, buffers) if others else None
            _add(shared, described, others)
        elif len(members) > 1:
            _add(shared, _loose(members, buffers, known), members)
    return shared


def _owners(registry: Registry) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for name, tensor in registry.tensors.items():
        if tensor.numel() and (memory := _memory(tensor)):
            owners.setdefault(memory, []).append(name)
    return owners


def _name(shared: Shared, members: _Members, names: dict[int, str]) -> _Members:
    """Those of `members` that are parameters or buffers themselves are so by name; return the others."""
    for _, tensor in members:
        if id(tensor) in names and id(tensor) not in shared.numbers:
            shared.add(tensor, {"is": names[id(tensor)]})
    return [(place, tensor) for place, tensor in members if id(tensor) not in names]


def _add(shared: Shared, described: dict[str, Any] | None, members: _Members) -> None:
    if described is None:
        return
    shared.tree["memories"].append(described)
    for place, tensor in members:
        if id(tensor) not in shared.numbers:
            facts = {"m": len(shared.tree["memories"]) - 1, "at": place, "dtype": values.dtype_name(tensor.dtype)}
            lies = {"shape": list(tensor.shape), "strides": list(tensor.stride()), "offset": tensor.storage_offset()}
            shared.add(tensor, {**facts, **lies, "leaf": tensor.requires_grad and tensor.is_leaf})


def _owned(owners: dict[str, torch.Tensor], buffers: list[bytes | memoryview]) -> dict[str, Any] | None:
    """Memory in which parameters and buffers lie."""
    name, first = next(iter(owners.items()))
    described = {"nbytes": first.untyped_storage().nbytes(), "device": str(first.device), "of": [name, _start(first)]}
    sizes = [_size(tensor) for tensor in owners.values() if tensor.is_contiguous()]
    if described["nbytes"] in (sum(sizes), *sizes):
        return described
    return _with_bytes(described, first, buffers)


def _loose(members: _Members, buffers: list[bytes | memoryview], known: constants.Constants) -> dict[str, Any] | None:
    """Memory that is the variables' own. Of large memory, one tensor must have all: views of what is not seen are stored singly."""
    first = members[0][1]
    nbytes = first.untyped_storage().nbytes()
    described = {"nbytes": nbytes, "device": str(first.device), "of": None}
    if nbytes < constants.CONSTANT_FROM:
        return _with_bytes(described, first, buffers)
    wholes = [(place, tensor) for place, tensor in members if tensor.is_contiguous() and _size(tensor) == nbytes]
    if not wholes:
        return None
    digest = known.digest(*wholes[0])
    grads = any(place.startswith(_GRAD) for place, _ in members)
    if not grads and any(known.has(place, digest) for place, _ in wholes):
        return {**described, "constant": digest}
    return _with_bytes(described, first, buffers)


def _with_bytes(
    described: dict[str, Any], tensor: torch.Tensor, buffers: list[bytes | memoryview]
) -> dict[str, Any] | None:
    if described["nbytes"] > constants.LARGEST:
        return None
    buffers.append(bytes(values.tensor_bytes(_flat(tensor.untyped_storage(), tensor.device))))
    return {**described, "b": len(buffers) - 1}


def _flat(storage: torch.UntypedStorage, device: torch.device) -> torch.Tensor:
    """All bytes of a memory, as a tensor that lies in it."""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


# -- restoring -----------------------------------------------------------------------------------------------------------------


class Placed:
    """The tensors that share memory, put into a running program; its variables are given them by number."""

    def __init__(self, slots: list[Slot], registry: Registry, recorded: set[str]) -> None:
        """`slots` and `registry` of the program as it is now; `recorded`: the paths that something is put into."""
        self.slots = {slot.path: slot for slot in slots}
        """What stands where, as it is put in place."""
        self._here = dict(_members(slots, registry))
        self._registry = registry
        self._names = registry.name_of()
        self._owned = set(_owners(registry))
        self._often: dict[int, int] = {}
        for _, tensor in _in_slots(slot for slot in slots if slot.path in recorded):
            self._often[_memory(tensor)] = self._often.get(_memory(tensor), 0) + 1
        self._tensors: list[torch.Tensor | None] = []
        self._taken: set[int] = set()

    def alone(self, tensor: torch.Tensor) -> bool:
        """Whether nothing lies in its memory that something else is put into: then it can be written to."""
        memory = _memory(tensor)
        return memory not in self._owned and memory not in self._taken and self._often.get(memory, 0) <= 1

    def given(self, node: Any) -> torch.Tensor:
        """Return the tensor that `node` stands for."""
        found = self._tensors[node["t"]]
        if found is None:
            raise values.OpaqueValueError("what it shares memory with is not as it was in the recorded run")
        return found

    def restore(self, described: dict[str, list[Any]], read: values.Reader) -> None:
        """Put the recorded memories in place."""
        members: dict[int, list[dict[str, Any]]] = {}
        for facts in described["tensors"]:
            members.setdefault(facts.get("m", -1), []).append(facts)
        memories = [self._restored(m, members.get(i, []), read) for i, m in enumerate(described["memories"])]
        for facts in described["tensors"]:
            self._tensors.append(
                self._registry.tensors[facts["is"]] if "is" in facts else self._tensor(facts, memories)
            )

    def _restored(
        self, described: dict[str, Any], members: list[dict[str, Any]], read: values.Reader
    ) -> torch.UntypedStorage | None:
        storage = self._found(described, members)
        if storage is None:
            return None
        self._taken.add(storage.data_ptr())
        if "b" in described:
            new = values.bytes_tensor(read(described["b"]), "uint8", (described["nbytes"],))
            _flat(storage, storage.device).copy_(new)
        return storage

    def _found(self, described: dict[str, Any], members: list[dict[str, Any]]) -> torch.UntypedStorage | None:
        """The memory that the program has for it now, or a new one."""
        nbytes = described["nbytes"]
        if described["of"] is not None:
            name, start = described["of"]
            owner = self._registry.tensors[name]
            fits = owner.untyped_storage().nbytes() == nbytes and _start(owner) == start
            return owner.untyped_storage() if fits else None
        for facts in members:
            live = self._here.get(facts["at"])
            if live is not None and self._is_free(live, described):
                return live.untyped_storage()
        return None if "constant" in described else torch.UntypedStorage(nbytes, device=described["device"])

    def _is_free(self, live: torch.Tensor, described: dict[str, Any]) -> bool:
        storage = live.untyped_storage()
        used = storage.data_ptr() in self._owned | self._taken
        if used or storage.nbytes() != described["nbytes"] or str(live.device) != described["device"]:
            return False
        if "constant" not in described:
            return True
        whole = values.tensor_bytes(_flat(storage, live.device))
        return xxhash.xxh3_128_hexdigest(whole) == described["constant"]

    def _tensor(self, facts: dict[str, Any], memories: list[torch.UntypedStorage | None]) -> torch.Tensor | None:
        storage = memories[facts["m"]]
        if storage is None:
            return None
        live = self._here.get(facts["at"])
        dtype, lies = values._dtype(facts["dtype"]), (facts["offset"], tuple(facts["shape"]), tuple(facts["strides"]))
        if live is None or id(live) in self._names or live.grad_fn is not None or not _is(live, storage, dtype, lies):
            live = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, *lies)
        return live.requires_grad_(facts["leaf"]) if live.is_leaf else live


def _is(live: torch.Tensor, storage: torch.UntypedStorage, dtype: torch.dtype, lies: tuple[Any, ...]) -> bool:
    same = _memory(live) == storage.data_ptr() and live.dtype == dtype
    return same and (live.storage_offset(), tuple(live.shape), live.stride()) == lies
