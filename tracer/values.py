"""Python values as JSON plus buffers, and back: the one encoding for keyframes, batches and loop variables.

JSON's own types stand for themselves (floats included, NaN and infinities as Python's json writes them). Everything else is
an object with one key `$`, its kind:

    {"$": "tensor", "b": i, "dtype": "float32", "shape": [..], "grad": bool, "device": "cpu"}   buffer i, C order, native bytes
    {"$": "array", "b": i, "dtype": "<f8", "shape": [..]}          a NumPy array
        both have "strides" where they do not lie in C order in the program, so that they lie there again as they did: element
        counts for a tensor, bytes for an array; the buffer is in C order all the same
        a tensor has "leaf": true where gradients were collected for it (without: it needed none, or had a graph behind it)
    {"$": "shared", "t": i}                                        of a keyframe: tensor i of those that share memory (`shared`)
    {"$": "scalar", "b": i, "dtype": "<f8"}                        a NumPy scalar
    {"$": "bytes", "b": i}   {"$": "float", "bits": "7ff8.."}      bytes; a float that JSON would not give back bit for bit
    {"$": "tuple" | "set" | "frozenset" | "deque", "v": [..]}      deque also has "maxlen"
    {"$": "named", "type": "m.Batch", "v": [..]}                   a named tuple, rebuilt from a template
    {"$": "dict", "v": [[key, value], ..]}                         every mapping
    {"$": "complex", "v": [re, im]}   {"$": "dtype", "v": "float32"}   {"$": "device", "v": "cpu"}   {"$": "size", "v": [..]}
    {"$": "slice", "v": [start, stop, step]}   {"$": "path", "v": "a/b"}
    {"$": "columns", "type": "list", "n": 10000, "of": column}     a long list, tuple or deque (with "maxlen") as `columns` says
    {"$": "object", "type": "m.Graph", "v": [[name, value], ..]}  what has attributes and nothing else, put into a template
    {"$": "enum", "type": "m.Color", "v": "RED"}                   a member, found again in the template's class
    {"$": "foreign", "of": "picture", "v": [..]}                  of another library: the parts of which `foreign` makes it
    {"$": "opaque", "type": "module.Name"}                         could not be recorded; decoding raises OpaqueValueError

Nothing is ever pickled, and decoding runs no code of the trace.
Room: tracer. May touch: its arguments only.
"""

from __future__ import annotations

import copy
import enum
import json
import math
import pathlib
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from tracer import columns, foreign, objects, strides
from tracer.errors import DamageError, MissingDataError
from tracer.strides import BESIDE, beside, without

Json = Any
Reader = Callable[[int], bytes]
Leaf = Callable[[Any], Json | None]
Types = Callable[[str], type | None]
_JSON_TYPES = (bool, int, str, type(None))
_SENSELESS = (LookupError, TypeError, ValueError, RuntimeError, struct.error, OverflowError)
"""What decoding raises where a node is not one that was encoded; RecursionError is a RuntimeError."""
_QUIET_NAN = struct.pack("<d", float("nan"))
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "list": list}


class _Sink(NamedTuple):
    buffers: list[bytes | memoryview]
    opaque: list[str] | None
    leaf: Leaf | None
    rows: bool
    objects: bool
    inside: frozenset[int] = frozenset()
    """The objects that are being taken apart: one that is in itself is opaque."""


@dataclass(frozen=True)
class _Source:
    read: Reader
    types: Types
    given: Callable[[Json], Any]
    leaves: bool


class OpaqueValueError(MissingDataError):
    """A value was met that could not be recorded, only named."""


def refusal(tensor: torch.Tensor) -> str | None:
    """Say why the elements of `tensor`, its dtype and its shape are not all of it (or are not there); None where they are."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return str(tensor.layout).removeprefix("torch.").lstrip("_")
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        return "without data"
    return None


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the elements of `tensor` (any strided dtype, any device) as bytes in C order; a view where it can be one.

    By DLPack: memory of which there was a NumPy array once is refused by torch to be resized, as the program may want to.
    """
    flat = tensor.detach()
    if flat.dtype is torch.float32 and not flat.is_neg() and flat.device.type == "cpu" and flat.is_contiguous():
        # The usual case, the short way.
        return memoryview(np.from_dlpack(flat)).cast("B") if flat.numel() else memoryview(b"")
    if flat.is_conj() or flat.is_neg():
        flat = flat.resolve_conj().resolve_neg()
    flat = flat.cpu().contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return memoryview(np.from_dlpack(flat.view(torch.uint8)))


def bytes_tensor(data: bytes, dtype: str, shape: list[int] | tuple[int, ...]) -> torch.Tensor:
    """Return the tensor of `dtype` (torch's own name, `float32`) and `shape` whose bytes are `data`; it owns its memory."""
    kind = _dtype(dtype)
    if not data:
        if math.prod(shape):
            raise DamageError(f"a tensor of shape {list(shape)} has no bytes")
        return torch.empty(tuple(shape), dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(kind).reshape(tuple(shape))


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = vars(torch).get(name)  # getattr would import what torch loads when it is asked for
    if not isinstance(dtype, torch.dtype):
        raise DamageError(f"{name!r} is no dtype of torch")
    return dtype


def encode(
    value: Any,
    buffers: list[bytes | memoryview],
    *,
    opaque: list[str] | None = None,
    leaf: Leaf | None = None,
    rows: bool = False,
    of_objects: bool = False,
) -> Json:
    """Return `value` as JSON; what is bytes goes to the end of `buffers`.

    Types that cannot be recorded become `opaque` nodes; their names are appended to `opaque` where it is given. `leaf` is asked
    first for each tensor and array: the node that it returns, unless None, stands for it. `rows`: long lists of things that are
    made alike are stored as columns. `of_objects`: what has attributes and nothing else is stored by them.
    """
    return _encode(value, _Sink(buffers, opaque, leaf, rows, of_objects))


def digest(node: Json, buffers: Sequence[bytes | memoryview]) -> str:
    """A 128-bit hash of an encoded value: structure, types, shapes, bytes; not how it lies in memory."""
    text = json.dumps(node)
    if '"strides"' in text or '"leaf"' in text:
        text = json.dumps(without(node, *BESIDE))
    found = xxhash.xxh3_128(text.encode())
    for buffer in buffers:
        found.update(buffer)
    return found.hexdigest()


def _encode(value: Any, sink: _Sink) -> Json:
    kind = type(value)
    if kind in _JSON_TYPES:
        return value
    if kind is float:
        return _encode_float(value)
    if sink.rows and columns.is_long(value) and (node := _encode_rows(value, sink)) is not None:
        return node
    if kind is list:
        return [_encode(v, sink) for v in value]
    for base, encoder in _ENCODERS:
        if isinstance(value, base):
            node = encoder(value, sink)
            if node is not None:
                return node
    return _encode_other(value, sink)


def _encode_other(value: Any, sink: _Sink) -> Json:
    node = _encode_foreign(value, sink)
    if node is None and sink.objects:
        node = _encode_object(value, sink)
    return _opaque(value, sink) if node is None else node


def _encode_foreign(value: Any, sink: _Sink) -> Json:
    found = foreign.parts(value)
    return None if found is None else {"$": "foreign", "of": found[0], "v": _encode(found[1], sink)}


def _encode_object(value: Any, sink: _Sink) -> Json:
    """An object in which something could not be recorded is opaque as a whole."""
    found = objects.fields(value)
    if not found or id(value) in sink.inside:
        return None
    known, inner = len(sink.buffers), sink._replace(opaque=[], inside=sink.inside | {id(value)})
    node = {"$": "object", "type": columns.type_name(type(value))}
    node["v"] = [[name, _encode(item, inner)] for name, item in found.items()]
    if inner.opaque:
        del sink.buffers[known:]
        return None
    return node


def _encode_rows(value: Any, sink: _Sink) -> Json:
    column = columns.of(value)
    if column is None:
        return None if len(value) <= columns.MOST_SINGLY else _opaque(value, sink, f" of {len(value)} unlike things")
    node = {"$": "columns", "type": type(value).__name__, "n": len(value)}
    if isinstance(value, deque):
        node["maxlen"] = value.maxlen
    return {**node, "of": columns.leaves(column, lambda leaf: _encode(leaf, sink))}


def _opaque(value: Any, sink: _Sink, more: str = "") -> Json:
    name = f"{type(value).__module__}.{type(value).__qualname__}{more}"
    if sink.opaque is not None:
        sink.opaque.append(name)
    return {"$": "opaque", "type": name}


def _encode_float(value: float) -> Json:
    bits = struct.pack("<d", value)
    if math.isnan(value) and bits != _QUIET_NAN:
        return {"$": "float", "bits": bits.hex()}
    return value


def _encode_tensor(value: torch.Tensor, sink: _Sink) -> Json:
    if (why := refusal(value)) is not None:
        coo = value.layout is torch.sparse_coo
        node = _encode_sparse(value, sink) if coo else _encode_foreign(value, sink)
        return _opaque(value, sink, f" ({why})") if node is None else node
    if sink.leaf is not None and (node := sink.leaf(value)) is not None:
        return node
    sink.buffers.append(tensor_bytes(value))
    node: dict[str, Any] = {
        "$": "tensor",
        "b": len(sink.buffers) - 1,
        "dtype": dtype_name(value.dtype),
        "shape": list(value.shape),
        "grad": bool(value.requires_grad),
        "device": str(value.device),
    }
    return {**node, **beside(value)}


def _encode_sparse(value: torch.Tensor, sink: _Sink) -> Json:
    value = value.detach()
    parts = [_encode_tensor(part, sink) for part in (value._indices(), value._values())]
    return {"$": "sparse", "v": parts, "shape": list(value.shape), "coalesced": value.is_coalesced()}


def _is_record(value: np.ndarray | np.generic) -> bool:
    return value.dtype.hasobject or value.dtype.names is not None


def _encode_array(value: np.ndarray, sink: _Sink) -> Json:
    if _is_record(value):
        return None
    if sink.leaf is not None and (node := sink.leaf(value)) is not None:
        return node
    sink.buffers.append(np.ascontiguousarray(value).reshape(-1).tobytes())
    node = {"$": "array", "b": len(sink.buffers) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}
    return {**node, **beside(value)}


def _encode_scalar(value: np.generic, sink: _Sink) -> Json:
    if _is_record(value):
        return None
    sink.buffers.append(value.tobytes())
    return {"$": "scalar", "b": len(sink.buffers) - 1, "dtype": value.dtype.str}


def _encode_bytes(value: bytes | bytearray, sink: _Sink) -> Json:
    sink.buffers.append(bytes(value))
    return {"$": "bytes", "b": len(sink.buffers) - 1}


def _encode_tuple(value: tuple, sink: _Sink) -> Json:
    items = [_encode(v, sink) for v in value]
    if type(value) is tuple:
        return {"$": "tuple", "v": items}
    if hasattr(value, "_fields"):
        return {"$": "named", "type": columns.type_name(type(value)), "v": items}
    return None


def _encode_deque(value: deque, sink: _Sink) -> Json:
    return {"$": "deque", "v": [_encode(v, sink) for v in value], "maxlen": value.maxlen}


def _encode_enum(value: enum.Enum, sink: _Sink) -> Json:
    name = getattr(value, "_name_", None)
    return {"$": "enum", "type": f"{type(value).__module__}.{type(value).__qualname__}", "v": name} if name else None


def _encode_set(value: set | frozenset, sink: _Sink) -> Json:
    kind = "set" if isinstance(value, set) else "frozenset"
    return {"$": kind, "v": [_encode(v, sink) for v in value]}


def _encode_mapping(value: Mapping, sink: _Sink) -> Json:
    items = [[_encode(k, sink), _encode(v, sink)] for k, v in value.items()]
    return {"$": "dict", "v": items}


_ENCODERS: tuple[tuple[Any, Callable], ...] = (
    (enum.Enum, _encode_enum),
    (torch.Tensor, _encode_tensor),
    (np.ndarray, _encode_array),
    (np.generic, _encode_scalar),
    (torch.Size, lambda v, sink: {"$": "size", "v": list(v)}),
    (tuple, _encode_tuple),
    ((dict, OrderedDict), _encode_mapping),
    (deque, _encode_deque),
    ((set, frozenset), _encode_set),
    ((bytes, bytearray), _encode_bytes),
    (complex, lambda v, sink: {"$": "complex", "v": [v.real, v.imag]}),
    (torch.dtype, lambda v, sink: {"$": "dtype", "v": dtype_name(v)}),
    (torch.device, lambda v, sink: {"$": "device", "v": str(v)}),
    (
        slice,
        lambda v, sink: {"$": "slice", "v": [_encode(x, sink) for x in (v.start, v.stop, v.step)]},
    ),
    (pathlib.Path, lambda v, sink: {"$": "path", "v": str(v)}),
)


def _nothing_given(node: Json) -> Any:
    raise OpaqueValueError("a tensor that shares memory with others has its place in a running program alone")


def decode(
    node: Json,
    read: Reader,
    template: Any = None,
    *,
    types: Types = lambda name: None,
    given: Callable[[Json], Any] = _nothing_given,
    leaves: bool = False,
) -> Any:
    """Return the value of `node`; `read(i)` gives the bytes of buffer i.

    `template` is a value of the same structure, if there is one: named tuples and dicts of a kind of their own take their
    type from it (without it they come back as plain tuples and dicts); of named tuples that it lacks, `types` gives it by name.
    `given`: what stands for a tensor that shares memory with others. `leaves`: those that needed gradients do so again.
    Raise OpaqueValueError at an opaque node, DamageError where `node` is none that `encode` makes.
    """
    try:
        return _decode(node, _Source(read, types, given, leaves), template)
    except _SENSELESS as error:
        raise DamageError(f"a value of the trace makes no sense: {type(error).__name__}: {error}") from None


def _decode(node: Json, source: _Source, template: Any = None) -> Any:
    if not isinstance(node, dict):
        if isinstance(node, list):
            return [_decode(v, source, _item(template, i)) for i, v in enumerate(node)]
        return node
    kind = node["$"]
    if kind == "opaque":
        raise OpaqueValueError(f"a {node['type']} was not recorded: it has no state that can be stored safely")
    if kind in ("dict", "named", "tuple", "set", "frozenset", "deque"):
        return _decode_container(kind, node, source, template)
    if kind == "columns":
        return _decode_rows(node, source)
    if kind == "object":
        return _decode_object(node, source, template)
    if kind == "enum":
        return _decode_enum(node, template)
    return _decode_leaf(kind, node, source)


def _decode_rows(node: Json, source: _Source) -> Any:
    column = columns.leaves(node["of"], lambda leaf: _decode(leaf, source))
    items = columns.items_of(column, node["n"], source.types)
    return deque(items, maxlen=node["maxlen"]) if node["type"] == "deque" else _SEQUENCES[node["type"]](items)


def _decode_object(node: Json, source: _Source, template: Any) -> Any:
    """The template itself, with what was recorded in it; without a template the attributes as a dict."""
    if template is not None and columns.type_name(type(template)) != node["type"]:
        raise OpaqueValueError(f"a {type(template).__qualname__} stands where a {node['type']} was recorded")
    here = (objects.fields(template) or {}) if template is not None else {}
    found = {name: _decode(value, source, here.get(name)) for name, value in node["v"]}
    if template is None:
        return found
    objects.put(template, found)
    return template


def _decode_enum(node: Json, template: Any) -> enum.Enum:
    members = getattr(type(template), "__members__", {}) if isinstance(template, enum.Enum) else {}
    if node["v"] not in members:
        raise OpaqueValueError(f"{node['v']} of {node['type']} has no counterpart here")
    return members[node["v"]]


def _item(template: Any, index: int) -> Any:
    if isinstance(template, (list, tuple, deque)) and index < len(template):
        return template[index]
    return None


def _decode_container(kind: str, node: Json, source: _Source, template: Any) -> Any:
    if kind == "dict":
        pairs = [(_decode(k, source), v) for k, v in node["v"]]
        inner = template if isinstance(template, Mapping) else {}
        return _like(template, {k: _decode(v, source, inner.get(k)) for k, v in pairs})
    items = [_decode(v, source, _item(template, i)) for i, v in enumerate(node["v"])]
    if kind == "deque":
        return deque(items, maxlen=node["maxlen"])
    if kind == "named":
        named = type(template) if hasattr(template, "_make") else source.types(node["type"])
        return tuple(items) if named is None else named._make(items)
    return _SEQUENCES[kind](items)


def _like(template: Any, found: dict[Any, Any]) -> dict[Any, Any]:
    """Return `found` as the template's own kind of dict: with its default factory, say."""
    if not isinstance(template, dict) or type(template) is dict:
        return found
    made = _copied(template)
    refill(made, found)
    return made


_CONTAINERS: tuple[Any, ...] = (list, deque, OrderedDict, dict, set)


def container(value: Any) -> Any:
    """Python's own kind of container that `value` can be changed as; None where it is none."""
    return next((kind for kind in _CONTAINERS if isinstance(value, kind)), None)


def refill(live: Any, new: Any) -> None:
    """Let a container hold what `new` does, by the methods of Python's own kind: those of the user's may do more, or refuse."""
    base = container(live)
    base.clear(live)
    if issubclass(base, dict):
        for key, value in new.items():
            base.__setitem__(live, key, value)
    else:
        (base.update if base is set else base.extend)(live, new)


def _copied(template: dict[Any, Any]) -> dict[Any, Any]:
    try:
        return copy.copy(template)
    except Exception:  # noqa: BLE001  whatever a class of the user's raises that refuses to be filled
        made = type(template).__new__(type(template))
        vars(made).update(vars(template))
        return made


def _decode_tensor(node: Json, source: _Source) -> torch.Tensor:
    tensor = bytes_tensor(source.read(node["b"]), node["dtype"], node["shape"])
    tensor = strides.laid_tensor(tensor, node.get("strides"))
    tensor = tensor.to(node["device"]) if node["device"] != "cpu" else tensor
    return tensor.requires_grad_() if source.leaves and node.get("leaf") else tensor


def _decode_leaf(kind: str, node: Json, source: _Source) -> Any:
    if kind == "tensor":
        return _decode_tensor(node, source)
    if kind == "shared":
        return source.given(node)
    if kind == "sparse":
        indices, values = (_decode_leaf("tensor", part, source) for part in node["v"])
        size, coalesced = node["shape"], node["coalesced"]
        return torch.sparse_coo_tensor(indices, values, size, is_coalesced=coalesced, check_invariants=True)
    if kind in ("array", "scalar"):
        array = np.frombuffer(bytearray(source.read(node["b"])), dtype=np.dtype(node["dtype"]))
        return strides.laid_array(array.reshape(node["shape"]), node.get("strides")) if kind == "array" else array[0]
    if kind == "bytes":
        return source.read(node["b"])
    if kind == "foreign":
        return foreign.made(node["of"], _decode(node["v"], source))
    if kind == "slice":
        return slice(*(_decode(v, source) for v in node["v"]))
    return _DECODERS[kind](node)


_DECODERS: dict[str, Callable[[Json], Any]] = {
    "float": lambda n: struct.unpack("<d", bytes.fromhex(n["bits"]))[0],
    "complex": lambda n: complex(*n["v"]),
    "dtype": lambda n: _dtype(n["v"]),
    "device": lambda n: torch.device(n["v"]),
    "size": lambda n: torch.Size(n["v"]),
    "path": lambda n: pathlib.Path(n["v"]),
}
