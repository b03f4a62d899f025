"""A keyframe: capture, disturb everything, restore, and all is as it was, to the last bit (C3)."""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import numpy as np
import pytest
import torch

from tracer import constants, frames, keyframe, registry, rng, walk
from tracer.packing import PackedLayout
from tracer.values import tensor_bytes


@pytest.fixture(autouse=True)
def _seeded():
    before = rng.capture_state()
    torch.manual_seed(0)
    yield
    rng.restore_state(before)


SHOTS = []


def use(*values):
    """Read them: what is not read again before it is written is no state."""


class Camera:
    """Captures the function that calls it, as the recorder does, and restores it later."""

    def __init__(self):
        self.constants = keyframe.Constants()

    def look(self, depth=2):
        stack = frames.user_frames(sys._getframe(depth))[:1]
        slots = [slot for slot in walk.walk(stack) if ":" not in slot.path]
        return slots, registry.build(slots, [])

    def take(self):
        slots, found = self.look()
        reader = registry.StateReader(found, registry.make_layout(found, 0))
        shot = keyframe.capture(slots, found, reader, self.constants)
        return json.loads(json.dumps(shot.tree)), [bytes(b) for b in shot.buffers]

    def put(self, shot):
        slots, found = self.look()
        tree, buffers = shot
        return keyframe.restore(tree, buffers.__getitem__, PackedLayout.of(tree["layout"]), slots, found)

    def digest(self):
        _, found = self.look()
        return keyframe.digest_now(found, registry.StateReader(found, registry.make_layout(found, 0)))


def bits(value):
    """A value as something that compares by bits and types."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), bytes(tensor_bytes(value))
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    return type(value).__name__, repr(value)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "Adam with a tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), foreach=False),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_goes_on_as_it_went_on(make):
    camera = Camera()
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = make(model.parameters())
    x, y = torch.randn(8, 3), torch.randn(8, 1)

    def closure():
        optimizer.zero_grad()
        loss = ((model(x + 0.1 * torch.randn(8, 3)) - y) ** 2).mean()
        loss.backward()
        return loss

    def go_on(steps):
        losses = [optimizer.step(closure).item() for _ in range(steps)]
        return losses, bits(dict(model.state_dict())), bits(optimizer.state_dict()["state"])

    go_on(2)
    shot, digest = camera.take(), camera.digest()
    expected = go_on(3)
    assert camera.digest() != digest
    for group in optimizer.param_groups:
        group["lr"] = 77.0
    optimizer.state.clear()
    model.eval()
    for p in model.parameters():
        p.data.fill_(9)
        p.grad = None
    assert camera.put(shot) == []
    assert camera.digest() == digest
    assert all(m.training for m in model.modules())
    assert go_on(3) == expected


def test_gradients_are_put_back_and_taken_away():
    camera = Camera()
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    model.bias.grad = None
    shot = camera.take()
    expected = model.weight.grad.clone()
    model.weight.grad += 5
    model.bias.grad = torch.ones(1)
    assert camera.put(shot) == []
    assert torch.equal(model.weight.grad, expected)
    assert model.bias.grad is None
    use(optimizer)


def test_parameters_stay_the_same_objects():
    camera = Camera()
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shot = camera.take()
    before = model.weight, model.weight.data_ptr()
    with torch.no_grad():
        model.weight += 1
    camera.put(shot)
    assert (model.weight, model.weight.data_ptr()) == before
    assert optimizer.param_groups[0]["params"][0] is model.weight


def test_parameter_groups_added_later_go_and_come():
    camera = Camera()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    body, head = model
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    early = camera.take()
    optimizer.add_param_group({"params": list(body.parameters()), "lr": 0.01, "name": "body"})
    late = camera.take()
    assert camera.put(early) == []
    assert [len(g["params"]) for g in optimizer.param_groups] == [2]
    assert camera.put(late) == []
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 2]
    assert optimizer.param_groups[1]["params"][0] is body.weight
    assert (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["name"]) == (0.01, "body")
    use(model, head)


def test_options_that_appeared_later_go():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shot = camera.take()
    optimizer.param_groups[0]["initial_lr"] = 0.5
    optimizer.param_groups[0]["lr"] = 1e-9
    camera.put(shot)
    assert "initial_lr" not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["lr"] == 0.1
    use(model)


def test_a_frozen_part_is_frozen_again():
    camera = Camera()
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.bias.requires_grad_(False)
    shot = camera.take()
    model.bias.requires_grad_(True)
    model.weight.requires_grad_(False)
    camera.put(shot)
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)
    use(optimizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=20),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
    ],
    ids=["StepLR", "warm restarts", "plateau", "one cycle", "sequential"],
)
def test_schedulers(make):
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    scheduler = make(optimizer)
    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)

    def go_on(steps):
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step(*([1.0] if plateau else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    go_on(2)
    shot = camera.take()
    expected = go_on(5)
    assert len(set(expected)) > 1
    assert camera.put(shot) == []
    assert go_on(5) == expected
    use(model)


def test_the_gradient_scaler():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def step(value):
        optimizer.zero_grad()
        scaler.scale(model(torch.full((1, 1), value)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale()

    step(1.0)
    shot = camera.take()
    expected = [step(v) for v in (1.0, float("inf"), 1.0, 1.0)]
    assert len(set(expected)) > 1
    assert camera.put(shot) == []
    assert [step(v) for v in (1.0, float("inf"), 1.0, 1.0)] == expected


def test_variables_of_every_kind():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    step, best, history, names = 3, float("inf"), [1.0, 2.0], {"a": 1}
    queue, array, pair = torch.arange(4.0), np.arange(3), (1, torch.ones(2))
    shot = camera.take()
    expected = bits([step, best, history, names, queue, array, pair])
    kept = history, names, queue, array
    use(step, best, pair)
    step, best = 9, 0.5
    history.append(5.0)
    names["b"] = 2
    queue += 1
    array[0] = 7
    pair = (2, torch.zeros(2))
    assert camera.put(shot) == []
    assert bits([step, best, history, names, queue, array, pair]) == expected
    # In place: whoever else holds them sees the past, too.
    assert all(a is b for a, b in zip(kept, (history, names, queue, array), strict=True))
    use(model)


def test_a_variable_of_another_kind_by_now():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    best, last, shape = None, None, torch.ones(2)
    shot = camera.take()
    use(best, last, shape)
    best, last, shape = 0.5, [1], torch.ones(5)
    camera.put(shot)
    assert (best, last, shape.shape) == (None, None, (2,))
    best = last = shape = 0
    camera.put(shot)
    assert (best, last) == (None, None)
    assert shape.tolist() == [1, 1]
    use(model)


def test_numbers_keep_type_and_sign():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    a, b, c, d = 1, 0.0, True, float("nan")
    shot = camera.take()
    use(a, b, c, d)
    a, b, c, d = True, -0.0, 1, 0.0
    camera.put(shot)
    assert bits([a, b, c]) == bits([1, 0.0, True])
    assert d != d
    use(model)


def test_dicts_of_a_kind_of_their_own_keep_it():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    groups, counts = defaultdict(list, {"a": [1]}), Counter("aab")
    nested = [defaultdict(int, x=1)]
    shot = camera.take()
    groups["b"].append(2)
    counts.update("bbb")
    nested[0]["y"] += 1
    camera.put(shot)
    assert groups == {"a": [1]}
    assert counts == {"a": 2, "b": 1}
    groups["new"].append(1)
    counts["new"] += 1
    nested[0]["new"] += 1
    assert nested == [{"x": 1, "new": 1}]
    use(model)


class Frozen(OrderedDict):
    """A library's settings: they refuse to be changed."""

    def __setitem__(self, key, value):
        if getattr(self, "made", False):
            raise TypeError("frozen")
        super().__setitem__(key, value)

    def update(self, *args, **kwargs):
        raise TypeError("frozen")


def test_a_dict_that_refuses_to_be_changed_is_left_as_it_is():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    settings = Frozen(a=1)
    settings.made, inner = True, settings.keys()
    shot = camera.take()
    assert camera.put(shot) == []
    assert list(inner) == ["a"]
    OrderedDict.__setitem__(settings, "b", 2)
    assert camera.put(shot) == []
    assert list(settings.items()) == [("a", 1)]
    use(model)


Pair = namedtuple("Pair", "left right")


def test_a_long_memory_of_transitions():
    """Ten times more than what is followed item by item; in a program that has just started it is empty."""
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    memory = deque((Pair(torch.full((2,), float(i)), i % 3) for i in range(40_000)), maxlen=50_000)
    known, reward = memory, [0.5] * 100
    camera.constants.known = True
    shot = camera.take()
    assert len(shot[1]) < 20
    memory.clear()
    reward.append(1.0)
    assert camera.put(shot) == []
    assert memory is known
    assert len(memory) == 40_000
    assert reward == [0.5] * 100
    assert memory.maxlen == 50_000
    assert type(memory[39_999]) is Pair
    assert memory[39_999].left.tolist() == [39_999.0, 39_999.0]
    use(model, memory, known, reward)


def test_a_long_list_that_stays_as_it_was_is_not_stored():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    data = [(np.full(64, i), i) for i in range(5000)]
    shot = camera.take()
    assert sum(map(len, shot[1])) < 100_000
    assert camera.put(shot) == []
    data[7][0][3] = -1
    (problem,) = camera.put(shot)
    assert "data: its content is not that of the recorded run" in problem
    assert sum(map(len, camera.take()[1])) > 2_000_000
    use(model, data)


def test_views_are_not_written_through():
    """A batch that is a slice of the data set must not change the data set when it is put back."""
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    data = torch.arange(6.0)
    array = np.arange(6)
    batch, window = data[0:2], array[0:2]
    shot = camera.take()
    use(batch, window)
    batch, window = data[2:4], array[2:4]
    camera.put(shot)
    assert data.tolist() == [0, 1, 2, 3, 4, 5]
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.tolist() == window.tolist() == [0, 1]
    use(model)


class TestSharedMemory:
    """What lies in one memory lies in one memory again: changed through one name, it is changed under all."""

    def test_a_list_of_what_the_optimizer_changes(self):
        camera = Camera()
        w, b = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.SGD([w, b], lr=0.1)
        parameters, raw = [w, b], {"w": w.data, "half": w.detach()[1:]}
        shot = camera.take()
        assert len(shot[1]) < 10  # Their bytes are those of the state: they are not stored again.
        use(parameters, raw)
        w.data.fill_(7)
        parameters, raw = [torch.ones(3)], {}
        assert camera.put(shot) == []
        assert [p is q for p, q in zip(parameters, (w, b), strict=True)] == [True, True]
        raw["w"].mul_(2)
        raw["half"].add_(1)
        assert w.tolist() == [2, 3, 3]
        use(optimizer)

    def test_parameters_that_are_pieces_of_one_vector(self):
        camera = Camera()
        flat = torch.arange(5.0)
        model = torch.nn.Linear(2, 2)
        model.weight.data, model.bias.data = flat[:4].view(2, 2), flat[3:]
        shot = camera.take()
        flat.fill_(9)
        assert camera.put(shot) == []
        flat.mul_(2)
        assert (model.weight.tolist(), model.bias.tolist()) == ([[0, 2], [4, 6]], [6, 8])

    @pytest.mark.parametrize("size", [6, constants.CONSTANT_FROM])
    def test_a_part_is_a_part_again(self, size):
        camera = Camera()
        model = torch.nn.Linear(1, 1)
        mean = torch.arange(float(size))
        part, others = mean[2:4], [mean[::2]]
        shot = camera.take()
        use(part, others)
        part, others = torch.zeros(2), [None]
        camera.put(shot)
        mean.add_(10)
        assert (part.tolist(), others[0][:2].tolist()) == ([12, 13], [10, 12])
        use(model)

    def test_what_was_a_copy_is_not_written_through(self):
        """When it was recorded `best` was a copy; the program has it as the parameter itself by now."""
        camera = Camera()
        model = torch.nn.Linear(1, 1, bias=False)
        best = model.weight.detach().clone()
        model.weight.data.fill_(2)
        shot, expected = camera.take(), best.item()
        use(best)
        best = model.weight.data
        assert camera.put(shot) == []
        assert (best.item(), model.weight.item()) == (expected, 2)

    def test_an_alias_of_what_is_replaced(self):
        camera = Camera()
        model = torch.nn.Linear(1, 1)
        window = np.arange(6)[2:4]
        same = window
        shot = camera.take()
        window[:] = 7
        camera.put(shot)
        window += 1
        assert same is window
        assert same.tolist() == [3, 4]
        use(model)

    def test_a_tensor_that_needs_gradients_needs_them_again(self):
        camera = Camera()
        model = torch.nn.Linear(1, 1)
        scale, frozen = torch.ones(2, requires_grad=True), torch.ones(3)
        shot = camera.take()
        use(scale, frozen)
        scale, frozen = None, torch.ones(3, requires_grad=True)
        camera.put(shot)
        assert (scale.requires_grad, frozen.requires_grad) == (True, False)
        use(model)


def test_an_alias_is_an_alias_again():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    first, second = [1], [2]
    chosen = first
    shot = camera.take()
    use(chosen)
    chosen = second
    camera.put(shot)
    assert chosen is first
    assert second == [2]
    use(model)


def test_tied_weights_have_one_place_and_two_names():
    camera = Camera()
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    shot = camera.take()
    assert len(shot[0]["layout"]["entries"]) == 1
    with torch.no_grad():
        model[0].weight.zero_()
    camera.put(shot)
    assert model[1].weight is first.weight
    assert model[0].weight.abs().sum() > 0
    use(second)


def test_random_generators_global_and_own():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    own, legacy, torchs = np.random.default_rng(1), random.Random(2), torch.Generator().manual_seed(3)

    def draw():
        return [
            own.random(),
            legacy.gauss(0, 1),
            torch.rand(1, generator=torchs).item(),
            torch.rand(1).item(),
            random.random(),
            np.random.randn(),
        ]

    draw()
    shot = camera.take()
    expected = draw()
    assert draw() != expected
    camera.put(shot)
    assert draw() == expected
    use(model)


def test_loops_go_on_from_where_they_were():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    ran = []
    SHOTS.clear()
    for epoch in range(4):
        for i, item in enumerate(["a", "b", "c"]):
            ran.append((epoch, i, item))
            if (epoch, i) == (1, 1) and not SHOTS:
                SHOTS.extend([camera.take(), list(ran)])
            if (epoch, i) == (3, 2) and len(SHOTS) == 2:
                assert camera.put(SHOTS[0]) == []
                # `ran` itself went back in place, too: what follows is what followed then.
                assert ran == SHOTS.pop()
    assert ran == [(e, i, x) for e in range(4) for i, x in enumerate("abc")]
    assert len(SHOTS) == 1
    use(model)


def test_large_data_is_not_stored_while_it_stays_as_it_was():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    data = torch.zeros(keyframe.CONSTANT_FROM // 4)
    small = camera.take()
    assert sum(len(b) for b in small[1]) < 40_000
    data[3] = 1
    big = camera.take()
    assert sum(len(b) for b in big[1]) > keyframe.CONSTANT_FROM
    assert any("content is not that" in line for line in camera.put(small))
    data[3] = 7
    assert camera.put(big) == []
    assert data[3] == 1
    data[3] = 0
    assert camera.put(small) == []
    use(model)


def test_large_data_that_appears_later_is_stored():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    queue = None
    early = camera.take()
    use(queue)
    queue = torch.ones(keyframe.CONSTANT_FROM)
    late = camera.take()
    use(queue)
    queue = None
    assert camera.put(late) == []
    assert queue.sum() == keyframe.CONSTANT_FROM
    assert camera.put(early) == []
    assert queue is None
    use(model)


@pytest.mark.parametrize("change", ["shape", "name", "dtype"])
def test_a_program_that_cannot_take_it_is_left_as_it_was(change):
    camera = Camera()
    model = torch.nn.Linear(2, 1)
    step = 1
    shot = camera.take()
    step = 2
    if change == "shape":
        model = torch.nn.Linear(3, 1)
    elif change == "dtype":
        model.double()
    else:
        model.register_buffer("more", torch.ones(1))
    before = copy.deepcopy(model.state_dict())
    problems = camera.put(shot)
    assert problems
    assert all(isinstance(p, str) for p in problems)
    assert bits(dict(model.state_dict())) == bits(dict(before))
    assert step == 2


def test_what_could_not_be_recorded_is_named():
    camera = Camera()
    model = torch.nn.Linear(1, 1)
    table = {"file": open(__file__, encoding="utf-8"), "n": 1}  # noqa: SIM115
    tree, _ = camera.take()
    table["file"].close()
    assert len(tree["holes"]) == 1
    assert "TextIOWrapper" in tree["holes"][0]
    assert table["n"] == 1
    use(model)


def test_a_capture_is_a_copy():
    camera = Camera()
    model = torch.nn.Linear(2, 2)
    queue = torch.ones(3)
    shot = camera.take()
    kept = [bytes(b) for b in shot[1]]
    with torch.no_grad():
        model.weight.fill_(5)
    queue.fill_(6)
    assert shot[1] == kept


class TestMappedFiles:
    """A data set that is mapped from a file is not read through at every keyframe."""

    @pytest.fixture
    def mapped(self, tmp_path):
        np.arange(30_000, dtype=np.uint16).tofile(tmp_path / "train.bin")
        return np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r")

    def test_it_is_read_once(self, mapped, monkeypatch):
        constants = keyframe.Constants()
        first = constants.digest("data", mapped)
        assert first == keyframe.Constants().digest("data", np.array(mapped))
        monkeypatch.setattr(np, "ascontiguousarray", None)
        assert constants.digest("data", mapped) == first

    def test_of_a_very_large_one_only_size_and_time_are_asked(self, mapped, monkeypatch):
        monkeypatch.setattr(constants, "LARGEST", 1000)
        before = keyframe.Constants().digest("data", mapped)
        assert keyframe.Constants().digest("data", mapped) == before
        os.utime(mapped.filename, ns=(1, 1))
        assert keyframe.Constants().digest("data", mapped) != before
