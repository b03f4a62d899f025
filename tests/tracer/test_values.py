"""Values as JSON and buffers, and back, bit for bit: what keyframes and batches are made of (C3)."""

from __future__ import annotations

import enum
import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tracer import values
from tracer.batches import BatchEncoder
from tracer.errors import DamageError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
DTYPES = [
    "bool",
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    *("complex32", "complex64", "complex128"),
]
Pair = namedtuple("Pair", "left right")


def round_trip(value, template=None, **options):
    """Encode, write as JSON text, read that, decode."""
    buffers = []
    text = json.dumps(values.encode(value, buffers, **options))
    kept = [bytes(b) for b in buffers]
    return values.decode(json.loads(text), kept.__getitem__, template)


def raw(tensor):
    """The bytes of the elements in C order, the long way round."""
    return np.ascontiguousarray(
        tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    ).tobytes()


def same(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert raw(one) == raw(other)


def of_bytes(data, name, shape):
    """A tensor made of bytes without the code under test."""
    size = torch.empty((), dtype=getattr(torch, name)).element_size()
    if not data:
        return torch.empty(shape, dtype=getattr(torch, name))
    flat = torch.tensor(list(data), dtype=torch.uint8).reshape(-1, size)
    return flat.view(getattr(torch, name)).reshape(shape)


@st.composite
def tensors(draw):
    """Any dtype, up to four dimensions, any bits."""
    name = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    size = math.prod(shape) * torch.empty((), dtype=getattr(torch, name)).element_size()
    data = draw(st.binary(min_size=size, max_size=size))
    return of_bytes(bytes(b & 1 for b in data) if name == "bool" else data, name, shape)


@given(tensors())
def test_any_tensor_comes_back_to_the_last_bit(tensor):
    back = round_trip(tensor)
    same(tensor, back)
    assert raw(back) == raw(tensor)
    assert back.is_contiguous()


@given(st.binary(min_size=48, max_size=48), st.sampled_from(["float32", "int16", "complex64", "bfloat16"]))
def test_views_come_back_as_what_they_show(data, name):
    base = of_bytes(data, name, (2, 3, -1))
    for view in (
        base.transpose(0, 2),
        base[:, ::2],
        base[1, 2, 0],
        base[:, :1].expand(2, 5, base.shape[2]),
        base.permute(2, 0, 1)[:, :, 1:],
        base[:0],
    ):
        same(view, round_trip(view))


@pytest.mark.parametrize("view", [torch.conj, lambda t: t.conj().imag, lambda t: t.conj().conj(), torch.real])
def test_lazy_views_are_resolved(view):
    lazy = view(torch.tensor([1 + 2j, -0.0 - 3j, complex(math.nan, 4)]))
    back = round_trip(lazy)
    assert not back.is_conj()
    assert not back.is_neg()
    same(lazy, back)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        # quiet and signalling NaNs with payloads, -0.0, denormals, infinities
        (torch.float32, [0x7FC00001, -0x003FFEDD, 0x7F800001, -0x80000000, 1, -0x7FFFFFFF, 0x7F800000]),
        (torch.float16, [0x7E01, 0x7C01, -0x8000, 1, -0x7FFF, 0x7C00]),
        (torch.bfloat16, [0x7FC1, 0x7F81, -0x8000, 1, -0x7FFF, 0x7F80]),
        (torch.float64, [0x7FF8000000000001, 0x7FF0000000000001, -(1 << 63), 1, 0x7FF0000000000000]),
    ],
)
def test_odd_numbers_keep_their_bits(dtype, bits):
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    tensor = torch.tensor(bits, dtype=whole).view(dtype)
    assert round_trip(tensor).view(whole).tolist() == bits
    array = tensor.view(whole).numpy()
    assert round_trip(array).tobytes() == array.tobytes()


def test_what_is_decoded_owns_its_memory():
    data = bytearray(struct.pack("<4f", 1, 2, 3, 4))
    tensor = values.bytes_tensor(data, "float32", [2, 2])
    data[:4] = struct.pack("<f", 9)
    assert tensor.tolist() == [[1, 2], [3, 4]]
    tensor += 1
    assert struct.unpack("<f", data[:4]) == (9,)


def test_tensor_bytes_shows_the_memory_where_it_can():
    tensor = torch.zeros(3)
    view = values.tensor_bytes(tensor)
    tensor[1] = 5
    assert struct.unpack("<3f", view) == (0, 5, 0)
    assert bytes(values.tensor_bytes(torch.empty(0, 3))) == b""


def test_a_tensor_that_needs_gradients_is_read_without_them():
    back = round_trip(torch.nn.Parameter(torch.ones(2)))
    assert type(back) is torch.Tensor
    assert back.tolist() == [1, 1]


def test_sparse_tensors():
    sparse = torch.sparse_coo_tensor([[0, 2], [1, 0]], [3.0, -0.0], (3, 2), check_invariants=True)
    back = round_trip(sparse)
    assert back.layout is torch.sparse_coo
    assert back._indices().tolist() == [[0, 2], [1, 0]]
    same(back._values(), sparse._values())
    assert back.is_coalesced() == sparse.is_coalesced() is False
    assert round_trip(sparse.coalesce()).is_coalesced()


@pytest.mark.parametrize("dtype", ["?", "i1", "<u2", ">i4", "<f2", "<f8", ">f8", "<c16", "<U3", "S2", "<M8[ns]"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_any_array_comes_back(dtype, shape):
    array = np.zeros(shape, dtype)
    array[...] = 65 if dtype in ("<U3", "S2") else 1
    back = round_trip(array)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert back.flags.writeable


@pytest.mark.parametrize("array", [np.arange(12).reshape(3, 4).T, np.asfortranarray(np.eye(3)), np.arange(9)[::-2]])
def test_arrays_of_any_order(array):
    assert np.array_equal(round_trip(array), array)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats()
    | st.complex_numbers()
    | st.sampled_from(
        [torch.float32, torch.device("cpu"), torch.Size([2, 3]), np.float32(0.1), np.int8(-3), np.bool_(True)]
    )
)
keys = st.text() | st.integers() | st.tuples(st.integers(), st.booleans()) | st.none()


def nested(children):
    return (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(keys, children, max_size=3)
        | st.lists(children, max_size=3).map(lambda v: deque(v, maxlen=4))
        | st.sets(st.integers() | st.text(), max_size=3)
        | st.frozensets(st.booleans() | st.text(), max_size=3)
    )


@given(st.recursive(scalars, nested, max_leaves=12))
def test_any_nesting_of_containers(value):
    back = round_trip(value)
    assert type(back) is type(value)
    assert described(back) == described(value)


def described(value):
    """Types and bits: what `==` does not say of NaN, -0.0, True and 1."""
    if isinstance(value, float):
        return type(value), struct.pack("<d", value)
    if isinstance(value, complex):
        # JSON keeps NaN as a NaN: the payload of a complex number's part is not promised.
        return [None if math.isnan(part) else struct.pack("<d", part) for part in (value.real, value.imag)]
    if isinstance(value, dict):
        return [(described(k), described(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), getattr(value, "maxlen", None), [described(v) for v in value]
    return type(value), value


@pytest.mark.parametrize("bits", ["010000000000f87f", "000000000000f8ff", "efbeadde0000f07f", "000000000000f87f"])
def test_the_payload_of_a_python_float(bits):
    (value,) = struct.unpack("<d", bytes.fromhex(bits))
    assert struct.pack("<d", round_trip({"x": [value]})["x"][0]).hex() == bits


def test_named_tuples_take_their_type_from_the_template_and_from_nowhere_else():
    value = {"a": [Pair(torch.ones(1), Pair(1, 2))]}
    back = round_trip(value, template=value)
    assert type(back["a"][0]) is type(back["a"][0].right) is Pair
    plain = round_trip(value)
    assert type(plain["a"][0]) is tuple
    assert plain["a"][0][1] == (1, 2)


@pytest.mark.parametrize(
    "kind",
    [OrderedDict, Counter, lambda v: defaultdict(list, v)],
    ids=["OrderedDict", "Counter", "defaultdict"],
)
def test_mappings_take_their_type_from_the_template(kind):
    value = [kind({"b": 1, "a": 2})]
    back = round_trip(value, template=value)
    assert type(back[0]) is type(value[0])
    assert list(back[0].items()) == [("b", 1), ("a", 2)]
    if hasattr(value[0], "default_factory"):
        assert back[0]["new"] == []
        assert "new" not in value[0]


def test_slices_of_anything():
    assert round_trip(slice(1, None, 2)) == slice(1, None, 2)
    back = round_trip(slice(np.int64(3), None))
    assert type(back.start) is np.int64
    assert back == slice(3, None)


class Live:
    """Something that has no safe stored form."""

    def __reduce__(self):
        raise AssertionError("was pickled")


def test_what_cannot_be_stored_is_named_and_never_pickled():
    opaque = []
    buffers = []
    node = values.encode({"x": Live(), "y": [1, lambda: 0]}, buffers, opaque=opaque)
    assert opaque == [f"{__name__}.Live", "builtins.function"]
    assert buffers == []
    with pytest.raises(values.OpaqueValueError, match="Live was not recorded"):
        values.decode(node, buffers.__getitem__)


@pytest.mark.parametrize(
    "array",
    [np.array([Live()], object), np.array([(1, None)], [("a", int), ("b", object)])],
)
def test_arrays_of_objects_are_opaque(array):
    opaque = []
    assert values.encode(array, [], opaque=opaque) == {"$": "opaque", "type": "numpy.ndarray"}
    assert opaque == ["numpy.ndarray"]


@pytest.mark.parametrize("name", ["load", "nn", "os", "Tensor", "__loader__", "no_such", "float32.__class__", ""])
def test_a_strangers_dtype_name_is_refused(name):
    with pytest.raises(DamageError):
        values.bytes_tensor(b"1234", name, [1])
    with pytest.raises(DamageError):
        values.decode({"$": "dtype", "v": name}, lambda i: b"")


@pytest.mark.parametrize("name", ["O", "|O8", "object"])
def test_a_strangers_array_of_objects_is_refused(name):
    with pytest.raises((DamageError, ValueError)):
        values.decode({"$": "array", "b": 0, "dtype": name, "shape": [1]}, lambda i: b"\0" * 8)


def test_the_leaf_stands_for_tensors_and_arrays():
    seen = []

    def leaf(value):
        seen.append(type(value))
        return {"$": "rows"} if value.ndim else None

    buffers = []
    node = values.encode([torch.ones(2), np.ones(3), torch.tensor(1.0), 4], buffers, leaf=leaf)
    assert seen == [torch.Tensor, np.ndarray, torch.Tensor]
    assert [n["$"] if isinstance(n, dict) else n for n in node] == ["rows", "rows", "tensor", 4]
    assert len(buffers) == 1


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class TestNames:
    """A member of an enumeration is found again in the class that the program has; a path is a path."""

    def test_a_member(self):
        assert round_trip(Color.BLUE, Color.RED) is Color.BLUE

    @pytest.mark.parametrize("template", [None, 3, values.Json])
    def test_without_the_class_it_is_said(self, template):
        with pytest.raises(values.OpaqueValueError, match=r"BLUE of .*Color"):
            round_trip(Color.BLUE, template)

    def test_a_path(self):
        assert round_trip([Path("a/b")]) == [Path("a/b")]


class Point:
    __slots__ = ("__secret", "x")

    def __init__(self, x, secret):
        self.x, self.__secret = x, secret

    def secret(self):
        return self.__secret


class Holder:
    def __init__(self, **fields):
        vars(self).update(fields)


def whole(value, template=None):
    buffers, opaque = [], []
    node = json.loads(json.dumps(values.encode(value, buffers, opaque=opaque, of_objects=True)))
    return opaque, values.decode(node, buffers.__getitem__, template) if not opaque else None


def test_an_object_is_its_attributes_put_into_a_template():
    template = Holder(point=Point(None, None), others=[Point(0, 0)], gone=1, function=len)
    known = template.point
    _, back = whole(Holder(point=Point(torch.ones(2), 5), others=[Point(1, 2)], name="a"), template)
    assert back is template
    assert back.point is known
    assert (back.point.x.tolist(), back.point.secret(), back.others[0].secret(), back.name) == ([1, 1], 5, 2, "a")
    assert (hasattr(back, "gone"), back.function) == (False, len)


def test_an_object_without_a_template_is_a_dict():
    assert whole(Holder(a=Point(1, 2)))[1] == {"a": {"_Point__secret": 2, "x": 1}}


def test_an_object_of_another_type_is_not_written_into():
    with pytest.raises(values.OpaqueValueError):
        whole(Holder(a=1), Point(1, 2))


def test_what_is_not_its_attributes_alone_is_opaque_as_a_whole():
    circle = Holder(a=torch.ones(1))
    circle.self = circle
    for value in (circle, Holder(a=torch.ones(1), b=iter(())), torch.nn.Linear(1, 1)):
        opaque, _ = whole([value])
        assert len(opaque) == 1


def odd_tensors(dtype):
    """Tensors that do not lie in C order, of every kind that a loop may be given."""
    x = torch.arange(120).view(2, 3, 4, 5).to(dtype)
    yield x.permute(0, 2, 1, 3)
    yield x.to(memory_format=torch.channels_last)
    yield x[:, :1].to(memory_format=torch.channels_last)  # one channel: told from C order by its strides alone
    yield x[:, ::2]
    yield x[:1].expand(7, 3, 4, 5)
    yield x.reshape(-1).unfold(0, 6, 3)
    yield x.reshape(-1)[::3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool, torch.bfloat16])
def test_what_was_read_can_still_be_resized(dtype):
    """Observers of quantization-aware training resize their buffers; memory that NumPy was given refuses it."""
    tensor = torch.zeros(4, 80, dtype=dtype)
    values.tensor_bytes(tensor)
    BatchEncoder().encode(tensor)
    tensor.resize_(100, 80)


@pytest.mark.filterwarnings("ignore:Sparse CS:UserWarning", "ignore:The PyTorch API of nested tensors:UserWarning")
class TestForeignKinds:
    """What other libraries' loaders give, made again of its parts."""

    def test_records(self):
        kind = np.dtype([("a", "<f4"), ("b", "<i8", (2,)), ("c", [("d", "S3"), ("e", ">u2")])])
        records = np.zeros((2, 3), kind)
        records["b"][1, 2], records["c"]["e"] = (4, 5), 7
        back, one = round_trip([records, records[1, 2]])
        assert (back.dtype, back.shape, back.tobytes()) == (kind, (2, 3), records.tobytes())
        assert (type(one), one.dtype, one.tobytes()) == (np.void, kind, records[1, 2].tobytes())

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "F", "I;16"])
    def test_pictures(self, mode):
        picture = Image.frombytes(mode, (5, 3), bytes(range(60))[: len(Image.new(mode, (5, 3)).tobytes())])
        back = round_trip({"image": picture})["image"]
        assert (back.mode, back.size, back.tobytes()) == (mode, (5, 3), picture.tobytes())

    def test_a_picture_with_a_palette_is_opaque(self):
        with pytest.raises(values.OpaqueValueError):
            round_trip(Image.new("P", (2, 2)))

    @pytest.mark.parametrize("make", ["to_sparse_csr", "to_sparse_csc"])
    def test_compressed(self, make):
        tensor = getattr(torch.arange(6.0).reshape(2, 3), make)()
        back = round_trip(tensor)
        assert back.layout == tensor.layout
        assert torch.equal(back.to_dense(), tensor.to_dense())

    @pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
    def test_nested(self, layout):
        parts = [torch.ones(2, 3), torch.zeros(4, 3)]
        back = round_trip(torch.nested.nested_tensor(parts, layout=layout))
        assert (back.is_nested, back.layout) == (True, layout)
        assert all(torch.equal(a, b) for a, b in zip(back.unbind(), parts, strict=True))


class TestHowItLies:
    """Kernels go by the strides: what lay transposed lies so again."""

    @pytest.mark.parametrize("name", ["float32", "bool", "bfloat16", "complex64", "complex128", "float8_e5m2"])
    def test_tensors(self, name):
        for tensor in odd_tensors(getattr(torch, name)):
            back = round_trip(tensor)
            same(tensor, back)
            assert back.stride() == tensor.stride()

    def test_arrays(self):
        a = np.arange(60.0).reshape(3, 4, 5)
        for array in (a.T, a[::-1], a[:, ::2], np.asfortranarray(a), np.broadcast_to(a[0], (6, 4, 5)), a[::-1, ::-2]):
            back = round_trip(array)
            assert (back.strides, back.tolist()) == (array.strides, array.tolist())

    def test_in_a_long_list(self):
        found = round_trip([torch.arange(6.0).view(2, 3).t() + i for i in range(70)], rows=True)
        assert [(t.stride(), t[2, 1].item()) for t in found] == [((1, 3), 5.0 + i) for i in range(70)]

    def test_the_digest_leaves_it_out(self):
        """Traces that were recorded before strides were have the same digests."""
        x = torch.arange(6.0).view(2, 3)
        turned, straight = [], []
        node = values.encode(x.t(), turned)
        assert values.digest(node, turned) == values.digest(values.encode(x.t().contiguous(), straight), straight)

    def test_what_would_span_too_much_comes_back_in_order(self):
        node = {
            "$": "tensor",
            "b": 0,
            "dtype": "uint8",
            "shape": [2],
            "strides": [1 << 40],
            "grad": False,
            "device": "cpu",
        }
        assert values.decode(node, lambda i: b"ab").tolist() == [97, 98]
