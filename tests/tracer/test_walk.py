"""What the walk finds from a program's frames: all that is state, under paths that every run of the code has (B1)."""

from __future__ import annotations

import functools
import itertools
import random
import sys
import types
from collections import deque

import numpy as np
import pytest
import torch

from tracer import columns, frames, walk

KNOB = [1]


def slots():
    """Walk the calling function alone, with the module that it is in."""
    stack = frames.user_frames(sys._getframe(1))[:1]
    return {slot.path.partition(".<locals>.run.")[2] or slot.path: slot for slot in walk.walk(stack)}


def use(*values):
    """Read them: what is not read again is no state."""


def kinds(found):
    return {path: slot.kind for path, slot in found.items() if ":" not in path}


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("buffer", "count", "never_set")

    def __init__(self):
        self.count, self.buffer = 3, [torch.ones(2)]


class Owning(torch.nn.Module):
    """A module with state that no state_dict knows."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)
        self.calls = 0
        self.memory = deque([torch.ones(1)], maxlen=3)


class Average:
    """The user's own state_dict leaves things out: the attributes are taken instead."""

    def __init__(self):
        self.hidden, self.shown = 1, 2

    def state_dict(self):
        return {"shown": self.shown}

    def load_state_dict(self, state):
        self.shown = state["shown"]


def test_numbers_tensors_containers_and_their_kinds():
    def run():
        step, name, x, table = 3, "a", torch.ones(2), {"a": [1, (2.0, np.ones(1))]}
        found = slots()
        return step, name, x, table, found

    *expected, found = run()
    for path, value in zip(("step", "name", "x", "table"), expected, strict=True):
        assert found[path].kind == "value"
        assert found[path].value is value


def test_what_is_never_read_again_is_not_there():
    def run():
        dead, alive = torch.ones(3), 1
        assert dead is not None
        found = slots()
        return alive, found

    assert set(kinds(run()[1])) == {"alive"}


def test_the_objects_of_a_training_loop():
    def run():
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        scaler = torch.amp.GradScaler("cpu")
        generator = torch.Generator()
        rng = np.random.default_rng()
        own = random.Random(1)
        found = slots()
        return model, optimizer, scheduler, scaler, generator, rng, own, found

    assert kinds(run()[-1]) == {
        "model": "module",
        "optimizer": "optimizer",
        "scheduler": "stateful",
        "scaler": "stateful",
        "generator": "generator",
        "rng": "generator",
        "own": "generator",
    }


def test_attributes_of_the_users_objects_slots_included():
    def run():
        state = Plain(step=1, inner=Plain(x=torch.ones(1)), items=[Plain(n=2), {"k": Plain(n=3)}])
        slotted, space = Slotted(), types.SimpleNamespace(a=5)
        found = slots()
        return state, slotted, space, found

    *objects, found = run()
    assert kinds(found) == {
        "state.step": "value",
        "state.inner.x": "value",
        "state.items[0].n": "value",
        "state.items[1]['k'].n": "value",
        "slotted.buffer": "value",
        "slotted.count": "value",
        "space.a": "value",
    }
    for path, value in [("state.step", 10), ("state.items[1]['k'].n", 30), ("slotted.count", 40), ("space.a", 50)]:
        found[path].put(value)
    state, slotted, space = objects
    assert (state.step, state.items[1]["k"].n, slotted.count, space.a) == (10, 30, 40, 50)


def test_closures_partials_and_methods():
    def make():
        hidden, shared = 0, [1]

        def bump():
            nonlocal hidden
            hidden += 1
            return hidden, shared

        return bump

    def run():
        bump = make()
        partial = functools.partial(make(), *())
        method = Plain(n=7, run=None).__init__
        found = slots()
        return bump, partial, method, found

    bump, _, _, found = run()
    assert found["bump.<hidden>"].kind == "value"
    assert found["bump.<shared>"].kind == "value"
    assert found["partial.func.<hidden>"].kind == "value"
    assert found["method.__self__.n"].value == 7
    found["bump.<hidden>"].put(41)
    assert bump()[0] == 42


def test_generators_with_their_frames_and_loops():
    def produce():
        total = 0
        for i in range(10):
            total += i
            yield total

    def run():
        stream = produce()
        next(stream)
        next(stream)
        found = slots()
        return stream, found

    stream, found = run()
    assert found["stream.total"].value == 1
    assert found["stream~0"].kind == "iterator"
    found["stream.total"].put(100)
    assert next(stream) == 102


def test_the_iterators_of_running_loops():
    def run():
        for epoch in range(3):
            for pair in enumerate(zip([1, 2], (3, 4), strict=True)):
                found = slots()
                return epoch, pair, found
        return None

    found = run()[-1]
    named = {
        slot.path.rpartition(".")[2]: type(slot.value).__name__ for slot in found.values() if slot.kind == "iterator"
    }
    assert named == {
        "run~0": "range_iterator",
        "run~1": "enumerate",
        "run~1~0~0": "list_iterator",
        "run~1~0~1": "tuple_iterator",
    }


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: itertools.cycle([1]), "cycle"),
        (lambda: itertools.islice(range(9), 5), "islice"),
        (lambda: itertools.chain([1], [2]), "chain"),
    ],
)
def test_iterators_that_cannot_be_placed_are_seen(make, kind):
    def run():
        it = make()
        found = slots()
        return it, found

    slot = run()[1]["it"]
    assert (slot.kind, type(slot.value).__name__) == ("iterator", kind)


class Lookahead(torch.optim.Optimizer):
    """A user's optimizer around another one, with a count of its own."""

    def __init__(self, base):
        self.base, self.count = base, 0
        self.slow = [p.detach().clone() for group in base.param_groups for p in group["params"]]
        self.param_groups, self.state = base.param_groups, base.state


def test_what_an_optimizer_of_the_users_has_beside_its_state():
    def run():
        model = torch.nn.Linear(1, 1)
        optimizer = Lookahead(torch.optim.Adam(model.parameters()))
        found = kinds(slots())
        use(optimizer)
        return found

    found = run()
    expected = {"optimizer": "optimizer", "optimizer.base": "optimizer", "optimizer.count": "value"}
    assert {path: kind for path, kind in found.items() if path.startswith("optimizer")} == expected | {
        "optimizer.slow": "value"
    }


def test_a_loaders_own_generator():
    def run():
        generator = torch.Generator()
        loader = torch.utils.data.DataLoader([1, 2], shuffle=True, generator=torch.Generator())
        same = torch.utils.data.DataLoader([1, 2], shuffle=True, generator=generator)
        sampler = torch.utils.data.DataLoader([1, 2], sampler=torch.utils.data.RandomSampler([1], generator=generator))
        found = slots()
        return loader, same, sampler, generator, found

    found = run()[-1]
    assert found["loader.generator"].kind == "generator"
    assert found["same.generator"].kind == "same"
    assert found["same.generator"].value.endswith(".generator")
    assert found["sampler.sampler.generator"].kind == "same"


def test_hooks_on_modules_and_a_modules_own_attributes():
    def run():
        seen = [0]

        def hook(module, inputs, output):
            seen[0] += 1

        model = Owning()
        model.inner.register_forward_hook(hook)
        found = slots()
        return model, found

    _, found = run()
    paths = kinds(found)
    assert paths["model"] == "module"
    assert paths["model.calls"] == paths["model.memory"] == "value"
    assert {k for k in paths if k.endswith("<seen>")} | {k for k in paths if k == "seen"}
    assert "model.inner" not in paths


def test_two_names_of_one_thing():
    def run():
        history = [1]
        alias = history
        model = torch.nn.Linear(1, 1)
        table = {"m": model, "h": history}
        box = Plain(model=model, h=history)
        found = slots()
        return history, alias, model, table, box, found

    found = run()[-1]
    by_kind = kinds(found)
    assert sorted(path for path in ("history", "alias") if by_kind[path] == "value")[0] in ("alias", "history")
    assert sorted([by_kind["history"], by_kind["alias"]]) == ["same", "value"]
    assert by_kind["box.h"] == "same"
    assert by_kind["box.model"] == "same"
    assert [path for path, kind in by_kind.items() if kind == "module"] in (["model"], ["table['m']"])


def test_a_users_state_dict_is_not_trusted():
    def run():
        average = Average()
        found = slots()
        return average, found

    assert set(kinds(run()[1])) == {"average.hidden", "average.shown"}


def test_things_that_go_round_in_circles_end():
    def run():
        one, other = Plain(n=1), Plain(n=2)
        one.peer, other.peer = other, one
        one.items = [one, other]
        found = slots()
        return one, other, found

    found = run()[-1]
    assert {"one.n", "one.peer.n"} <= set(found) or {"other.n", "other.peer.n"} <= set(found)


class TestLibraries:
    """What an installed library has in its objects is state, too; what only shows how a training goes is not."""

    @pytest.fixture
    def library(self, tmp_path, monkeypatch):
        """Give the class of a module `name` that lies in a site-packages."""

        def make(name, **attributes):
            file = tmp_path / "site-packages" / (name.replace(".", "/") + ".py")
            module = types.ModuleType(name)
            module.__file__ = str(file)
            monkeypatch.setitem(sys.modules, name, module)
            return type("Thing", (Plain,), {"__module__": name})(**attributes)

        return make

    def walked(self, thing):
        def run():
            found = slots()
            return thing, found

        return {path: slot for path, slot in run()[1].items() if path.startswith("thing")}

    def test_attributes(self, library):
        found = self.walked(library("gymlike.envs", state=np.ones(3), rng=np.random.default_rng(1)))
        assert kinds(found) == {"thing.state": "value", "thing.rng": "generator"}

    def test_what_only_shows(self, library):
        assert self.walked(library("tqdm.std", n=3)) == {}
        assert self.walked(library("lightlike.loggers.csv", n=3)) == {}

    def test_what_computes_is_not_looked_into(self, library):
        assert kinds(self.walked(library("scipy.thing", n=3))) == {"thing": "opaque"}

    def test_keys_that_are_addresses_mean_nothing_in_another_process(self):
        assert self.walked({id(self): "name"}) == {}
        assert self.walked([{id(self): 1}, 2]).keys() == {"thing[1]"}
        assert self.walked({1: "name"}).keys() == {"thing"}

    def test_more_than_can_be_followed_is_said(self, monkeypatch):
        monkeypatch.setattr(walk, "MAX_SLOTS", 3)
        many = 1, [2], {"three": 3}, 4.0
        one, two, three, four = many
        found = slots()
        assert (one, two, three, four) == many
        assert [slot.kind for slot in found.values()][-1] == "opaque"
        assert "3 things" in list(found)[-1]


def test_what_it_cannot_see_into_it_says():
    def run(path=__file__):
        with open(path, encoding="utf-8") as file:
            found = slots()
            file.read(1)
        return found

    assert kinds(run())["file"] == "opaque"


def test_module_variables_of_the_users_file():
    def run():
        return slots()

    found = run()
    path = next(path for path in found if path.endswith(":KNOB"))
    assert found[path].value is KNOB
    assert not any(path.endswith((":np", ":torch", ":Plain", ":__name__")) for path in found)


def test_the_same_code_gives_the_same_paths():
    def run():
        state = Plain(step=1)
        for i in range(2):
            found = walk.walk(frames.user_frames(sys._getframe())[:1])
            state.step += i
        return [(s.path, s.kind) for s in found]

    assert run() == run()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (1, True),
        (None, True),
        (torch.ones(1), True),
        (torch.nn.Parameter(torch.ones(1)), False),
        ([1, {"a": (2, {3})}], True),
        ([torch.nn.Linear(1, 1)], False),
        (np.array([None]), False),
        (np.float32(1), True),
        (slice(1), True),
        (lambda: 0, False),
        ([0] * (walk.MAX_ITEMS + 1), True),
        ([0] * (columns.MOST + 1), False),
        ([(0, {1: np.zeros(1)})] * 100, True),
        ([(0, {1: lambda: 0})] * 100, False),
        ([np.zeros(1), np.array([None])] * 100, False),
        ([torch.nn.Parameter(torch.zeros(1))] * 100, False),
    ],
)
def test_what_is_data_all_through(value, plain):
    assert walk.is_plain(value) is plain


class Answering:
    """Says yes to every name that it is asked for, and is not made to be asked for some."""

    def __getattr__(self, name):
        if name == "state_dict":
            raise RuntimeError("no driver")
        return lambda *args: None


def test_an_object_that_answers_to_any_name_is_not_asked():
    def run():
        anything, weights = Answering(), [torch.ones(2)]
        found = slots()
        assert anything, weights
        return found

    assert "weights" in kinds(run())
