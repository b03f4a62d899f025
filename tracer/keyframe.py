"""A keyframe: everything a step starts from, captured from a running program and put back into one.

Room: tracer. `capture` reads the program; `restore` changes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from tracer import columns, iterators, kinds, rng, shared, strides, values
from tracer.constants import CONSTANT_FROM, LARGEST, Constants, is_large
from tracer.errors import DamageError, MissingDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.packing import PackedLayout
    from tracer.registry import Registry, StateReader
    from tracer.walk import Slot


@dataclass(frozen=True)
class Keyframe:
    """The tree (JSON) and the buffers of one keyframe; `holes` names what the program has that could not be recorded."""

    tree: dict[str, Any]
    buffers: list[bytes]
    digest: str
    holes: list[str]

    @property
    def nbytes(self) -> int:
        """The bytes of its buffers."""
        return sum(map(len, self.buffers))


def capture(slots: list[Slot], registry: Registry, reader: StateReader, constants: Constants) -> Keyframe:
    """Return the state of the program whose walk gave `slots`."""
    buffers: list[bytes | memoryview] = [b"".join(reader.packed())]
    holes = [f"{name} ({why})" for name, why in registry.left_out.items()]
    opaque: list[str] = []
    nodes = []
    common = _capture_shared(slots, registry, buffers, opaque, constants)
    for slot in slots:
        node = _capture_safely(slot, buffers, opaque, constants, common)
        if slot.kind == "opaque" or (slot.kind == "iterator" and node is None):
            holes.append(f"{slot.path} ({type(slot.value).__module__}.{type(slot.value).__qualname__})")
        elif node is not None or (slot.kind == "value" and slot.value is None):
            nodes.append([slot.path, slot.kind, node, *([kinds.name(slot.value)] if slot.kind == "stateful" else ())])
    constants.known = True
    tree = {
        "layout": {**reader.layout.header(), "options": kinds.options(registry)},
        "state": {"b": 0},
        "grads": _capture_grads(registry, buffers, opaque, common),
        "frozen": sorted(name for name in registry.params if not registry.tensors[name].requires_grad),
        "training": [[path, [m.training for m in module.modules()]] for path, module in registry.modules.items()],
        "classes": {path: kinds.classes(module) for path, module in registry.modules.items()},
        "optimizers": _capture_optimizers(registry, buffers, opaque),
        "shared": common.tree,
        "slots": nodes,
        "rng": values.encode(rng.capture_state(), buffers),
        "holes": holes + opaque + _graphs(slots),
        "placeable": all(iterators.position(slot.value) is not None for slot in slots if slot.kind == "iterator"),
    }
    # Copied: a keyframe is written when its step is over, and the step changes what it starts from.
    buffers = [bytes(b) for b in buffers]
    tree["digest"] = _digest(tree["optimizers"], buffers)
    return Keyframe(tree, buffers, tree["digest"], holes + opaque)


def _capture_shared(
    slots: list[Slot],
    registry: Registry,
    buffers: list[bytes | memoryview],
    opaque: list[str],
    constants: Constants,
) -> shared.Shared:
    known = len(buffers)
    try:
        return shared.capture(slots, registry, buffers, constants)
    except Exception as error:  # noqa: BLE001  whatever a tensor of a library's own kind raises where its memory is asked for
        del buffers[known:]
        opaque.append(f"which variables share memory ({type(error).__name__}: {error})")
        return shared.Shared()


def _graphs(slots: list[Slot]) -> list[str]:
    """Variables with a graph behind them: a backward pass that starts from one, in a later step, needs what was before."""
    found = [(slot.path, tensor) for slot in slots if slot.kind == "value" for tensor in _few_tensors(slot.value)]
    return [f"{path} (it has a graph of earlier computations behind it)" for path, t in found if t.grad_fn is not None]


def _few_tensors(value: Any) -> list[torch.Tensor]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    return [item for item in items if isinstance(item, torch.Tensor)]


def _digest(optimizers: list[Any], buffers: Sequence[bytes | memoryview]) -> str:
    """Hash of weights (buffer 0) and optimizer state: what a replay that reaches this state must have, too."""
    digest = xxhash.xxh3_64(buffers[0])
    digest.update(json.dumps([_without_positions(o) for o in optimizers], sort_keys=True).encode())
    for index in sorted(_buffer_indices(optimizers)):
        digest.update(buffers[index])
    return digest.hexdigest()


def digest_now(registry: Registry, reader: StateReader) -> str:
    """Return the digest that a keyframe of the program would have now."""
    buffers: list[bytes | memoryview] = [b"".join(reader.packed())]
    return _digest(_capture_optimizers(registry, buffers, []), buffers)


def _capture_optimizers(registry: Registry, buffers: list[bytes | memoryview], opaque: list[str]) -> list[Any]:
    names = registry.name_of()
    whole = {}
    for path, optimizer in registry.optimizers.items():
        if all(id(p) in names for group in optimizer.param_groups for p in group["params"]):
            whole[path] = optimizer
        else:
            opaque.append(f"{path} (of a parameter that is not recorded)")
    return [[path, _capture_optimizer(o, names, buffers, opaque)] for path, o in whole.items()]


def _without_positions(node: Any) -> Any:
    return values.without(node, "b", *values.BESIDE)


def _buffer_indices(node: Any) -> list[int]:
    if isinstance(node, dict):
        own = [node["b"]] if "b" in node and "$" in node else []
        return own + [i for v in node.values() for i in _buffer_indices(v)]
    return [i for v in node for i in _buffer_indices(v)] if isinstance(node, list) else []


def _capture_safely(
    slot: Slot, buffers: list[bytes | memoryview], opaque: list[str], constants: Constants, common: shared.Shared
) -> Any:
    """Return the node of `slot`; a thing of a library's own kind that cannot be read is a hole, and the recording goes on."""
    known = len(buffers)
    try:
        return _capture_slot(slot, buffers, opaque, constants, common)
    except Exception as error:  # noqa: BLE001  whatever a library's object raises
        del buffers[known:]
        opaque.append(f"{slot.path} ({type(slot.value).__qualname__}: {type(error).__name__}: {error})")
        return None


def _capture_slot(
    slot: Slot, buffers: list[bytes | memoryview], opaque: list[str], constants: Constants, common: shared.Shared
) -> Any:
    if slot.kind == "iterator":
        return iterators.position(slot.value)
    if slot.kind == "generator":
        return values.encode(rng.generator_state(slot.value), buffers)
    if slot.kind == "stateful":
        return values.encode(slot.value.state_dict(), buffers, opaque=opaque, rows=True)
    if slot.kind == "same":
        return slot.value
    if slot.kind == "value" and common.touches(slot.value):
        return values.encode(slot.value, buffers, opaque=opaque, leaf=common.node)
    return _capture_value(slot, buffers, opaque, constants) if slot.kind == "value" else None


def _capture_value(slot: Slot, buffers: list[bytes | memoryview], opaque: list[str], constants: Constants) -> Any:
    if is_large(slot.value):
        digest = constants.digest(slot.path, slot.value)
        if constants.has(slot.path, digest):
            return {"$": "constant", "hash": digest}
        if _nbytes(slot.value) > LARGEST:
            opaque.append(f"{slot.path}, {_nbytes(slot.value) >> 20} MB that changed")
            return None
    known = len(buffers)
    node = values.encode(slot.value, buffers, opaque=opaque, rows=True)
    if columns.is_long(slot.value) and (size := sum(map(len, buffers[known:]))) >= CONSTANT_FROM:
        digest = _node_digest(node, buffers[known:])
        if constants.has(slot.path, digest):
            del buffers[known:]
            return {"$": "constant", "hash": digest}
        if size > LARGEST:
            del buffers[known:]
            opaque.append(f"{slot.path}, {size >> 20} MB that changed")
            return None
    return node


def _node_digest(node: Any, buffers: Sequence[bytes | memoryview]) -> str:
    """Hash of an encoded value; where in the keyframe its buffers lie does not count."""
    return values.digest(_without_positions(node), buffers)


def _nbytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else value.numel() * value.element_size()


def _capture_grads(
    registry: Registry, buffers: list[bytes | memoryview], opaque: list[str], common: shared.Shared
) -> list[Any]:
    grads = [(name, registry.tensors[name].grad) for name in registry.tensors if name in registry.params]
    found = [(name, grad) for name, grad in grads if grad is not None]
    return [[name, values.encode(grad, buffers, opaque=opaque, leaf=common.node)] for name, grad in found]


def _capture_optimizer(
    optimizer: torch.optim.Optimizer,
    names: dict[int, str],
    buffers: list[bytes | memoryview],
    opaque: list[str],
) -> dict[str, Any]:
    groups = []
    for group in optimizer.param_groups:
        options = {k: v for k, v in group.items() if k != "params"}
        members = [names[id(p)] for p in group["params"]]
        groups.append({"params": members, "options": values.encode(options, buffers, opaque=opaque)})
    state = [
        [names[id(p)], values.encode(dict(s), buffers, opaque=opaque)]
        for p, s in optimizer.state.items()
        if id(p) in names
    ]
    return {"class": type(optimizer).__name__, "groups": groups, "state": state}


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the hyperparameters of each group."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


# -- restoring -----------------------------------------------------------------------------------------------------------------


def restore(
    tree: dict[str, Any], read: values.Reader, layout: PackedLayout, slots: list[Slot], registry: Registry
) -> list[str]:
    """Put the recorded state into the program whose walk gave `slots`; return what could not be put back, one line each.

    `read(i)` gives the bytes of buffer i; `layout` is the recorded one. A program that cannot take the state (other names or
    shapes) is left as it was, and the one line says so.
    """
    problems = mismatch(layout, registry)
    if problems:
        return problems
    _restore_tensors(read(tree["state"]["b"]), layout, registry)
    _restore_modes(tree, registry)
    problems += kinds.other_modules(tree.get("classes", {}), registry)
    placed = shared.Placed(slots, registry, {slot[0] for slot in tree["slots"]})
    placed.restore(tree.get("shared", shared.NOTHING), read)
    problems += _restore_grads(dict(tree["grads"]), read, registry, placed)
    for path, recorded in tree["optimizers"]:
        live = registry.optimizers.get(path) or _counterpart(path, recorded, registry)
        if live is not None:
            _restore_optimizer(live, recorded, read, registry)
        else:
            problems.append(f"the optimizer at {path} does not exist in the program now")
    problems += _restore_slots(tree["slots"], read, placed)
    rng.restore_state(values.decode(tree["rng"], read))
    return problems


def _counterpart(path: str, recorded: dict[str, Any], registry: Registry) -> torch.optim.Optimizer | None:
    """One that no variable led to when it was recorded may have a path now: it is of the same class, on the same parameters."""
    names, groups = registry.name_of(), [group["params"] for group in recorded["groups"]]
    alike = [o for o in registry.optimizers.values() if type(o).__name__ == recorded["class"]]
    for optimizer in alike if path.startswith("<") else ():
        if [[names.get(id(p)) for p in group["params"]] for group in optimizer.param_groups] == groups:
            return optimizer
    return None


def _restore_modes(tree: dict[str, Any], registry: Registry) -> None:
    """Which parameters are frozen, which modules are in training mode."""
    for name in registry.params:
        if registry.tensors[name].is_leaf:
            registry.tensors[name].requires_grad_(name not in tree["frozen"])
    for path, flags in tree["training"]:
        modules = registry.modules[path].modules() if path in registry.modules else ()
        for module, flag in zip(modules, flags, strict=False):
            module.training = flag


def mismatch(layout: PackedLayout, registry: Registry) -> list[str]:
    """Return one line for each tensor that the recorded layout and the program do not have alike, and each such optimizer."""
    recorded = {e.name: (e.dtype, e.shape) for e in layout.entries}
    here = {n: (values.dtype_name(t.dtype), tuple(t.shape)) for n, t in registry.tensors.items()}
    tensors = [
        f"{name}: recorded {recorded.get(name)}, the program has {here.get(name)}"
        for name in {**recorded, **here}
        if recorded.get(name) != here.get(name)
    ]
    return tensors + kinds.other_optimizers(layout.options, registry)


def _restore_tensors(packed: bytes, layout: PackedLayout, registry: Registry) -> None:
    for entry in layout.entries:
        data = packed[entry.offset : entry.offset + entry.nbytes]
        live = registry.tensors[entry.name]
        live.data.copy_(values.bytes_tensor(data, entry.dtype, entry.shape))


def _restore_grads(
    recorded: dict[str, Any], read: values.Reader, registry: Registry, placed: shared.Placed
) -> list[str]:
    problems = []
    for name in registry.params:
        param = registry.tensors[name]
        try:
            new = values.decode(recorded[name], read, given=placed.given) if name in recorded else None
        except values.OpaqueValueError as error:
            new = None
            problems.append(f"the gradient of {name}: {error}")
        param.grad = new if new is None else new.to(param.device)
    return problems


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, recorded: dict[str, Any], read: values.Reader, registry: Registry
) -> None:
    groups = recorded["groups"]
    del optimizer.param_groups[len(groups) :]
    for i, group in enumerate(groups):
        if i == len(optimizer.param_groups):
            optimizer.param_groups.append({})
        live = optimizer.param_groups[i]
        live["params"] = [registry.tensors[name] for name in group["params"]]
        put_options(live, values.decode(group["options"], read))
    state = {registry.tensors[name]: values.decode(node, read) for name, node in recorded["state"]}
    for param in [p for p in optimizer.state if p not in state]:
        del optimizer.state[param]
    for param, new in state.items():
        optimizer.state[param] = _to_device(new, param)


def put_options(group: dict[str, Any], options: dict[str, Any]) -> None:
    """Set the hyperparameters of a live group; a tensor stays the same tensor, with the new value."""
    for key, value in options.items():
        if isinstance(group.get(key), torch.Tensor) and isinstance(value, torch.Tensor):
            group[key].copy_(value)
        else:
            group[key] = value
    for key in [k for k in group if k != "params" and k not in options]:
        del group[key]


def _to_device(state: dict[str, Any], param: torch.Tensor) -> dict[str, Any]:
    if param.device.type == "cpu":
        return state
    return {k: v.to(param.device) if isinstance(v, torch.Tensor) and v.dim() > 0 else v for k, v in state.items()}


def _restore_slots(recorded: list[Any], read: values.Reader, placed: shared.Placed) -> list[str]:
    problems = []
    for path, kind, node, *class_ in recorded:
        slot = placed.slots.get(path)
        try:
            problem = kinds.other(class_, slot) or _restore_slot(kind, node, read, slot, placed)
        except (DamageError, MissingDataError):
            raise
        except Exception as error:  # noqa: BLE001  whatever a library's object raises where something is put into it
            problem = f"{type(error).__name__}: {error}"
        if problem:
            problems.append(f"{path}: {problem}")
    return problems


def _restore_slot(kind: str, node: Any, read: values.Reader, slot: Slot | None, placed: shared.Placed) -> str | None:
    if slot is None:
        # A variable that the program does not have yet, or one outside the function that is replayed.
        return None
    if kind == "same":
        return _restore_alias(node, slot, placed.slots)
    if kind == "value":
        return _restore_value(node, read, slot, placed)
    if kind != slot.kind:
        return f"recorded as {kind}, the program has a {slot.kind}"
    return _RESTORERS[kind](node, read, slot)


def _restore_alias(target: str, slot: Slot, live: dict[str, Slot]) -> str | None:
    """`live` has what stands in the target's place now: what was an alias of what stood there before is none of it."""
    other = live.get(target)
    if other is None or slot.put is None or other.kind == "same":
        return None
    slot.put(other.value)
    return None


def _restore_iterator(node: Any, read: values.Reader, slot: Slot) -> str | None:
    return None if iterators.put_position(slot.value, node) else "this loop cannot be set back"


def _restore_generator(node: Any, read: values.Reader, slot: Slot) -> str | None:
    rng.put_generator_state(slot.value, values.decode(node, read))
    return None


def _restore_stateful(node: Any, read: values.Reader, slot: Slot) -> str | None:
    try:
        slot.value.load_state_dict(values.decode(node, read))
    except values.OpaqueValueError as error:
        return str(error)
    return None


_RESTORERS: dict[str, Callable[[Any, values.Reader, Slot], str | None]] = {
    "iterator": _restore_iterator,
    "generator": _restore_generator,
    "stateful": _restore_stateful,
}


def _restore_value(node: Any, read: values.Reader, slot: Slot, placed: shared.Placed) -> str | None:
    if isinstance(node, dict) and node.get("$") == "constant":
        return None if _digest_here(slot) == node["hash"] else "its content is not that of the recorded run"
    try:
        new = values.decode(node, read, slot.value, types=columns.named_type, given=placed.given, leaves=True)
    except values.OpaqueValueError as error:
        return str(error)
    if slot.kind == "value" and (new is slot.value or _same_scalar(slot.value, new)):
        return None
    if slot.kind == "value" and not _is_shared(node) and _put_in_place(slot.value, new, placed):
        return None
    if slot.put is None:
        return "it cannot be replaced"
    slot.put(new)
    placed.slots[slot.path] = replace(slot, kind="value", value=new)
    return None


def _is_shared(node: Any) -> bool:
    """Whether it is a tensor that lies in memory which others have, too: it is there already."""
    return isinstance(node, dict) and node.get("$") == "shared"


def _digest_here(slot: Slot) -> str | None:
    if is_large(slot.value):
        return Constants().digest(slot.path, slot.value)
    buffers: list[bytes | memoryview] = []
    return _node_digest(values.encode(slot.value, buffers, rows=True), buffers)


def _same_scalar(live: Any, new: Any) -> bool:
    if type(live) is not type(new) or not isinstance(live, (bool, int, float, str, bytes, type(None))):
        return False
    return repr(live) == repr(new)


def _put_in_place(live: Any, new: Any, placed: shared.Placed) -> bool:
    """Give a live object the recorded content where others may share it; views are left alone (they would write through)."""
    if isinstance(live, torch.Tensor) and isinstance(new, torch.Tensor):
        return placed.alone(live) and _copy_tensor(live, new)
    if isinstance(live, np.ndarray) and isinstance(new, np.ndarray):
        owns = live.base is None and live.flags.owndata and live.flags.writeable
        if owns and live.shape == new.shape and live.dtype == new.dtype:
            np.copyto(live, new)
            return True
        return False
    if type(live) is not type(new):
        return False
    return _put_items(live, new)


def _put_items(live: Any, new: Any) -> bool:
    base = values.container(live)
    if base is None:
        return False
    if type(live) is not base and _node_of(live) == _node_of(new):
        return True  # One that may refuse to be changed, or note that it was, is left alone where it need not be.
    values.refill(live, new)
    return True


def _node_of(value: Any) -> tuple[str, list[bytes]]:
    buffers: list[bytes | memoryview] = []
    return json.dumps(values.encode(value, buffers)), [bytes(b) for b in buffers]


def _copy_tensor(live: torch.Tensor, new: torch.Tensor) -> bool:
    if live.shape != new.shape or live.dtype != new.dtype or live.layout != new.layout or live._is_view():
        return False
    if new.layout is torch.strided and strides.of_tensor(live) != strides.of_tensor(new):
        return False
    if live.grad_fn is not None or live.untyped_storage().nbytes() != live.numel() * live.element_size():
        return False
    live.data.copy_(new.detach())
    if live.is_leaf:
        live.requires_grad_(new.requires_grad)
    return True
