"""Long lists of things made alike are a few arrays, and come back as they were, to the last bit."""

from __future__ import annotations

import json
import struct
from collections import deque, namedtuple

import numpy as np
import pytest
import torch

from tracer import columns, values
from tracer.errors import DamageError

Transition = namedtuple("Transition", "state action following reward")


def stored(value):
    buffers = []
    node = values.encode(value, buffers, rows=True)
    return json.loads(json.dumps(node)), [bytes(b) for b in buffers]


def round_trip(value):
    node, buffers = stored(value)
    return values.decode(node, buffers.__getitem__, types=columns.named_type)


def bits(value):
    """Type, shape and bytes of everything in it."""
    if isinstance(value, torch.Tensor):
        return "tensor", value.dtype, value.shape, bytes(values.tensor_bytes(value))
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype, value.shape, value.tobytes()
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    if isinstance(value, dict):
        return [(k, bits(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), getattr(value, "maxlen", None), [bits(v) for v in value]
    return type(value), value


def transition(i):
    state, following = torch.full((1, 4), i / 3), None if i % 7 == 0 else torch.full((1, 4), (i + 1) / 3)
    return Transition(state, torch.tensor([[i % 2]]), following, torch.tensor([float(i)]))


NAN = struct.unpack("<d", bytes.fromhex("efbeadde0000f07f"))[0]
LISTS = {
    "transitions": deque((transition(i) for i in range(300)), maxlen=500),
    "numbers": [(i, i / 7, i % 2 == 0, None, f"s{i}") for i in range(100)],
    "odd floats": [NAN, -0.0, float("inf"), 0.0] * 20,
    "unlike numbers": [1, True, 1.0, None, "1", np.float32(1)] * 20,
    "ragged": [list(range(i % 5)) for i in range(100)],
    "arrays": tuple(np.full((2, i % 3 + 1), i, np.float32) for i in range(80)),
    "half precision": [torch.tensor(i, dtype=torch.bfloat16) for i in range(70)],
    "empty": [torch.zeros(0, 3)] * 70,
    "dicts": [{"state": np.array([i, i]), "done": False, 3: (i,)} for i in range(90)],
    "large numbers": [2**70 + i for i in range(70)],
    "points": [np.array(i) for i in range(70)],
    "places": [(torch.arange(6).reshape(2, 3).t(), ())] * 70,
    "of other order": [np.arange(3, dtype=">i4")] * 70,
}


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_it_comes_back_as_it_was(value):
    assert bits(round_trip(value)) == bits(value)


def test_ten_thousand_transitions_are_a_few_buffers():
    node, buffers = stored([transition(i) for i in range(10_000)])
    assert node["$"] == "columns"
    assert len(buffers) == 5
    assert len(json.dumps(node)) < 2000


def test_each_item_owns_its_memory():
    back = round_trip([(torch.zeros(2), np.zeros(2))] * 70)
    back[0][0].add_(1)
    back[0][1][:] = 1
    assert back[1][0].tolist() == back[1][1].tolist() == [0, 0]
    assert back[0][0].untyped_storage().nbytes() == 8


def test_named_tuples_take_their_type_from_a_module_of_the_program_alone():
    rows = [transition(i) for i in range(70)]
    assert type(round_trip(rows)[0]) is Transition
    node, buffers = stored(rows)
    for stranger in ("os.system", "builtins.tuple", "nowhere.Transition", "Transition", ""):
        node["of"]["type"] = stranger
        back = values.decode(node, buffers.__getitem__, types=columns.named_type)
        assert type(back[0]) is tuple


def test_what_needs_gradients_is_no_column():
    assert columns.of([torch.zeros(1, requires_grad=True)] * 70) is None


def test_many_things_that_are_not_alike_are_named():
    opaque = []
    unlike = [torch.zeros(i) for i in range(columns.MOST_SINGLY + 1)]
    assert values.encode(unlike, [], opaque=opaque, rows=True)["$"] == "opaque"
    assert opaque == ["builtins.list of 4097 unlike things"]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 71},
        {"n": -1},
        {"n": 1 << 40},
        {"n": None},
        {"of": {"c": "none"}, "n": 1 << 40},
        {"of": {"c": "tuples", "v": [{"c": "none"}, {"c": "texts", "v": []}]}},
        {"of": {"c": "nonsense", "v": 1}},
        {"type": "dict"},
    ],
)
def test_damage_is_damage(change):
    node, buffers = stored([(i, float(i)) for i in range(70)])
    with pytest.raises(DamageError):
        values.decode({**node, **change}, buffers.__getitem__)
