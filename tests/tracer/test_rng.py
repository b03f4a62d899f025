"""The random generators: equal snapshots mean equal generators, and what was captured is put back (C3)."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from tracer import rng, values


@pytest.fixture(autouse=True)
def _put_back():
    before = rng.capture_state()
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    yield
    rng.restore_state(before)


DRAWS = {
    "torch": lambda: torch.rand(1),
    "torch.randn": lambda: torch.randn(3),
    "torch.randperm": lambda: torch.randperm(5),
    "python": random.random,
    "python.gauss": lambda: random.gauss(0, 1),
    "numpy": lambda: np.random.rand(),
    "numpy.randn": lambda: np.random.randn(),
    "numpy.shuffle": lambda: np.random.shuffle(np.arange(5)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_draw_shows(draw):
    reader = rng.RngReader()
    for _ in range(3):
        before = reader.snapshot()
        assert reader.snapshot() == before
        assert reader.snapshot().hash() == before.hash()
        draw()
        after = reader.snapshot()
        assert after != before
        assert after.hash() != before.hash()


@pytest.mark.parametrize("peeks", [True, False])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_snapshot_can_be_put_back(draw, peeks):
    reader = rng.RngReader()
    reader._peek_python &= peeks
    draw()
    before = reader.snapshot()
    first = [repr(each()) for each in DRAWS.values()]
    reader.put_back(before)
    assert reader.snapshot() == before
    assert [repr(each()) for each in DRAWS.values()] == first
    assert rng.RngReader().snapshot() == reader.snapshot() or not peeks


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_cached_gaussian_is_part_of_the_state(times):
    """Box-Muller makes two numbers at once: the second comes without moving the twister."""
    reader = rng.RngReader()
    seen = []
    for _ in range(times + 1):
        np.random.randn()
        random.gauss(0, 1)
        shot = reader.snapshot()
        assert shot not in seen
        seen.append(shot)


def test_a_gaussian_cached_behind_an_unmoved_twister_shows():
    reader = rng.RngReader()
    np.random.randn()
    before = reader.snapshot()
    state = np.random.get_state()
    np.random.set_state((*state[:3], state[3], state[4] + 1))
    assert reader.snapshot() != before
    np.random.set_state((*state[:3], 0, 0.0))
    assert reader.snapshot() != before


def test_a_seed_that_was_set_again_gives_equal_snapshots():
    reader = rng.RngReader()
    shots = []
    for seed in (5, 6, 5):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        shots.append(reader.snapshot())
    assert shots[0] == shots[2] != shots[1]


@pytest.mark.parametrize("draws", [0, 1, 400, 700])
def test_what_is_peeked_is_what_the_public_calls_say(draws):
    reader = rng.RngReader()
    for _ in range(draws):
        random.random()
        np.random.rand()
    key, _ = rng._python_state(random._inst)
    assert reader._peek_python, "this interpreter's generator can be read from memory"
    raw = rng._python_raw(random._inst)
    assert raw[4 : 4 + 4 * 624] == key[: 4 * 624]
    assert raw[:4] == key[-4:]
    _, numbers, place, *_ = np.random.get_state()
    assert reader._numpy_raw() == np.asarray(numbers).tobytes() + np.int32(place).tobytes()


def test_without_peeking_it_sees_as_much(monkeypatch):
    monkeypatch.setattr(rng, "_python_peek_is_right", lambda: False)
    monkeypatch.setattr(rng, "_numpy_address", lambda: None)
    reader = rng.RngReader()
    for draw in DRAWS.values():
        before = reader.snapshot()
        assert reader.snapshot() == before
        draw()
        assert reader.snapshot() != before


def draw_all():
    return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_global_generators_are_put_back(before):
    for _ in range(before):
        random.gauss(0, 1)
        np.random.randn()
    state = rng.capture_state()
    expected = [draw_all(), draw_all()]
    draw_all()
    rng.restore_state(state)
    assert [draw_all(), draw_all()] == expected
    rng.restore_state(state)
    assert draw_all() == expected[0]


def test_and_through_the_encodings():
    state = rng.capture_state()
    portable = json.loads(json.dumps(rng.portable_state()))
    buffers = []
    node = json.loads(json.dumps(values.encode(state, buffers)))
    expected = draw_all()
    rng.restore_portable(portable)
    assert draw_all() == expected
    rng.restore_state(values.decode(node, buffers.__getitem__))
    assert draw_all() == expected


GENERATORS = {
    "torch": (lambda: torch.Generator().manual_seed(4), lambda g: torch.randn(2, generator=g).tolist()),
    "random": (lambda: random.Random(4), lambda g: (g.random(), g.gauss(0, 1))),
    "RandomState": (lambda: np.random.RandomState(4), lambda g: (g.rand(), g.randn())),
    "default_rng": (lambda: np.random.default_rng(4), lambda g: (g.random(), g.integers(9, dtype=np.int32))),
    "MT19937": (lambda: np.random.Generator(np.random.MT19937(4)), lambda g: g.standard_normal()),
    "Philox": (lambda: np.random.Generator(np.random.Philox(4)), lambda g: g.standard_normal()),
    "SFC64": (lambda: np.random.SFC64(4), lambda g: g.random_raw()),
}


@pytest.mark.parametrize(("make", "draw"), GENERATORS.values(), ids=GENERATORS)
def test_a_generator_object_is_put_back_as_the_same_object(make, draw):
    generator = make()
    assert isinstance(generator, rng.GENERATOR_TYPES)
    draw(generator)
    buffers = []
    node = json.loads(json.dumps(values.encode(rng.generator_state(generator), buffers)))
    expected = [draw(generator) for _ in range(3)]
    other = make()
    for target in (generator, other):
        rng.put_generator_state(target, values.decode(node, buffers.__getitem__))
        assert [draw(target) for _ in range(3)] == expected


def test_a_captured_state_does_not_move_on():
    generator = np.random.default_rng(4)
    before = rng.generator_state(generator)
    kept = json.dumps(before, default=str)
    generator.random(5)
    assert json.dumps(before, default=str) == kept
