"""Where one step ends and the next begins, told from real loops to steps that only take notes (C1, B1)."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch

from tests.tracer.training import loader, make
from tracer import hooks
from tracer.boundary import Boundary


class Notes:
    """Steps that write down what they are told."""

    def __init__(self):
        self.heard = []
        self.boundary = Boundary(self)

    def fetch(self, native, *, extra, same_iterator):
        if extra:
            self.heard.append("extra")
        return native()

    def begin(self, batch, *, left, iterator):
        self.heard.append("begin anew" if left else "begin")

    def discard(self):
        self.heard.append("discard")

    def end(self, *, mode, interrupted=False):
        self.heard.append("cut short" if interrupted else f"end {mode}")

    def forward(self, module, args):
        self.heard.append("forward")

    def backward(self, losses):
        self.heard.append("backward")

    def optimizer_pre(self, optimizer):
        self.heard.append("pre")

    def optimizer_post(self, optimizer):
        self.heard.append("post")

    def count(self, what):
        return sum(h.startswith(what) for h in self.heard)

    @property
    def outline(self):
        """Begins, ends and discards alone."""
        return [h for h in self.heard if h.startswith(("begin", "end", "discard", "cut", "extra"))]


def listen(program):
    """What the steps heard of `program`; the last step is closed as a recorder closes it."""
    notes = Notes()
    with hooks.installed(notes.boundary):
        program()
    if notes.boundary.open:
        notes.boundary.close()
    return notes


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


def test_a_loader_drives():
    def program():
        model, optimizer = make()
        for _ in range(2):
            for x, _ in loader(8):
                step(model, optimizer, x)

    notes = listen(program)
    epoch = ["begin anew", "end loader", "begin", "end loader"]
    assert notes.outline == epoch * 2
    assert notes.heard[:4] == ["begin anew", "backward", "pre", "post"]


def test_batches_that_only_accumulate_are_steps():
    def program():
        model, optimizer = make()
        for i, (x, _) in enumerate(loader(20)):
            model(x).sum().backward()
            if i % 2:
                optimizer.step()

    assert listen(program).outline == ["begin anew"] + ["end loader", "begin"] * 4 + ["end loader"]


def test_batches_without_training_are_none():
    def program():
        model, optimizer = make()
        next(iter(loader(8)))  # a look into it
        for x, _ in loader(8):
            step(model, optimizer, x)
        for x, _ in loader(8):  # a validation that forgot no_grad
            model(x)

    notes = listen(program)
    assert notes.count("end") == 2
    assert notes.count("discard") == 3
    trained, validated = (
        ["begin anew", "end loader", "begin", "end loader"],
        ["begin anew", "discard", "begin", "discard"],
    )
    assert notes.outline == ["begin anew", "discard", *trained, *validated]


def test_under_no_grad_nothing_is_heard():
    def program():
        model, optimizer = make()
        for x, _ in loader(4):
            step(model, optimizer, x)
        with torch.no_grad():
            for x, _ in loader(8):
                model(x)

    assert listen(program).outline == ["begin anew", "end loader"]


def test_a_validation_inside_a_step_belongs_to_it():
    def program():
        model, optimizer = make()
        for i, (x, _) in enumerate(loader(12)):
            step(model, optimizer, x)
            if i:
                for v, _ in loader(8):
                    model(v)

    notes = listen(program)
    assert [h for h in notes.outline if h != "extra"] == ["begin anew", "end loader"] + ["begin", "end loader"] * 2
    assert notes.count("extra") >= 4


def test_a_validation_in_the_first_step_adds_no_step():
    def program():
        model, optimizer = make()
        for i, (x, _) in enumerate(loader(12)):
            step(model, optimizer, x)
            if i == 0:
                for v, _ in loader(12):
                    model(v)

    assert listen(program).count("end") == 3


def test_a_second_loader_fetched_in_each_step():
    def program():
        model, optimizer = make()
        second = itertools.chain.from_iterable(itertools.repeat(loader(12)))
        for x, _ in loader(12):
            u, _ = next(second)
            step(model, optimizer, x + u)

    notes = listen(program)
    assert notes.outline == ["begin anew", "extra", "end loader"] + ["begin", "extra", "end loader"] * 2


def test_the_loader_that_is_fetched_again_and_again_takes_over():
    def program():
        model, optimizer = make()
        peeked = iter(loader(40))
        next(peeked)
        for x, _ in loader(40):
            step(model, optimizer, x)

    notes = listen(program)
    # The first fetch was a look: at most the first batches are told otherwise, then each is a step.
    assert 8 <= notes.count("end") <= 10


def test_a_gan_steps_twice_in_each_batch():
    def program():
        one, a = make()
        other, b = make()
        for x, _ in loader(12):
            step(one, a, x)
            step(other, b, x)

    notes = listen(program)
    assert notes.outline == ["begin anew", "end loader"] + ["begin", "end loader"] * 2
    assert notes.count("post") == 6


def test_a_closure_optimizer_runs_several_passes_in_one_step():
    def program():
        model, _ = make()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        for x, y in loader(8):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = ((model(x) - y) ** 2).mean()
                loss.backward()
                return loss

            optimizer.step(closure)

    notes = listen(program)
    assert notes.outline == ["begin anew", "end loader", "begin", "end loader"]
    assert notes.count("backward") > 4
    assert notes.count("pre") == notes.count("post") == 2


class TestEnds:
    def loop(self, act):
        model, optimizer = make()
        for i, (x, _) in enumerate(loader(20)):
            step(model, optimizer, x)
            act(i)

    def test_a_break(self):
        def program():
            model, optimizer = make()
            for i, (x, _) in enumerate(loader(20)):
                step(model, optimizer, x)
                if i == 1:
                    break
            return model

        assert listen(program).outline == ["begin anew", "end loader", "begin", "end loader"]

    @pytest.mark.parametrize("error", [RuntimeError, StopIteration, KeyboardInterrupt, SystemExit])
    def test_an_exception_cuts_it_short(self, error):
        def act(i):
            if i == 1:
                raise error

        notes = Notes()
        with hooks.installed(notes.boundary), contextlib.suppress(error):
            self.loop(act)
        assert notes.outline == ["begin anew", "end loader", "begin", "cut short"]

    def test_a_return_from_inside_the_loop(self):
        def epoch(model, optimizer):
            for x, _ in loader(20):
                step(model, optimizer, x)
                return x
            return None

        def program():
            model, optimizer = make()
            for _ in range(2):
                epoch(model, optimizer)

        assert listen(program).outline == ["begin anew", "end loader"] * 2

    def test_next_to_the_end(self):
        def program():
            model, optimizer = make()
            batches = iter(loader(8))
            with contextlib.suppress(StopIteration):
                while True:
                    x, _ = next(batches)
                    step(model, optimizer, x)

        assert listen(program).outline == ["begin anew", "end loader", "begin", "end loader"]

    def test_an_iterator_that_another_replaces_is_no_exception(self):
        class Loop:
            def epoch(self, model, optimizer):
                self.batches = iter(loader(8))
                for _ in range(2):
                    x, _ = next(self.batches)
                    step(model, optimizer, x)
                self.batches = iter(loader(8))
                step(model, optimizer, next(self.batches)[0])

        assert listen(lambda: Loop().epoch(*make())).outline.count("cut short") == 0

    def test_an_exception_handled_within_the_step_is_no_end(self):
        def program():
            model, optimizer = make()
            for x, _ in loader(8):
                with contextlib.suppress(ValueError):
                    raise ValueError
                step(model, optimizer, x)

        assert listen(program).outline == ["begin anew", "end loader", "begin", "end loader"]


class TestWithoutLoader:
    def test_the_optimizers_step_is_the_step(self):
        def program():
            model, optimizer = make()
            for _ in range(3):
                step(model, optimizer, torch.ones(1, 3))

        notes = listen(program)
        assert notes.outline == ["end optimizer"] * 3
        assert notes.heard[:4] == ["backward", "pre", "post", "end optimizer"]

    def test_of_two_optimizers_the_first_leads(self):
        def program():
            one, a = make()
            other, b = make()
            for _ in range(6):
                step(one, a, torch.ones(1, 3))
                step(other, b, torch.ones(1, 3))

        notes = listen(program)
        assert notes.outline == ["end optimizer"] * 6
        assert notes.count("post") == 12

    def test_when_the_first_steps_no_more_another_leads(self):
        def program():
            one, a = make()
            for _ in range(5):
                step(one, a, torch.ones(1, 3))
            other, b = make()
            for _ in range(20):
                step(other, b, torch.ones(1, 3))

        assert 5 + 18 <= listen(program).count("end") <= 25

    def test_a_leader_that_is_gone_is_followed_by_the_next(self):
        def program():
            for _ in range(3):
                model, optimizer = make()
                step(model, optimizer, torch.ones(1, 3))
                step(model, optimizer, torch.ones(1, 3))
                del optimizer

        assert listen(program).count("end") == 6

    def test_whom_to_follow_can_be_said(self):
        notes = Notes()
        one, a = make()
        other, b = make()
        with hooks.installed(notes.boundary):
            notes.boundary.follow(b)
            assert notes.boundary.leader() is b
            step(one, a, torch.ones(1, 3))
            assert notes.count("end") == 0
            step(other, b, torch.ones(1, 3))
            assert notes.count("end") == 1


def test_it_keeps_nothing_alive():
    import gc
    import weakref

    notes = Notes()
    with hooks.installed(notes.boundary):
        model, optimizer = make()
        step(model, optimizer, torch.ones(1, 3))
        batches = iter(loader(8))
        next(batches)
        refs = [weakref.ref(o) for o in (model, optimizer, batches)]
        del model, optimizer, batches
        gc.collect()
    assert [r() for r in refs] == [None] * 3


def test_another_threads_training_is_not_ours():
    import threading

    notes = Notes()

    def other():
        model, optimizer = make()
        step(model, optimizer, torch.ones(1, 3))

    with hooks.installed(notes.boundary):
        model, optimizer = make()
        step(model, optimizer, torch.ones(1, 3))
        before = list(notes.heard)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert notes.heard == before


class Annotated(torch.Tensor):
    """A library's tensor with more to it: what is computed of it is one, too."""


def test_the_loss_of_a_tensor_of_a_kind_of_its_own_is_told_once():
    """`Tensor.backward` of a subclass calls itself again: the loss was recorded twice over, as a sum."""

    def program():
        model, optimizer = make()
        for x, _ in loader():
            loss = model(x.as_subclass(Annotated)).pow(2).mean()
            assert type(loss) is Annotated
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    assert listen(program).count("backward") == 5
