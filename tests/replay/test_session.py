"""Going about in a recorded function, in this process: seek, step, verdicts, and what is refused (C3, B2)."""

from __future__ import annotations

import os
import random
from collections import defaultdict, namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import tracer
from replay import Session, verify
from replay.causes import Context, likely_cause
from replay.session import spans
from tests.tracer.training import data, make, train, train_without_loader
from tracer import active, hooks, keyframe, manifest, rng
from tracer.errors import (
    EnvironmentMismatchError,
    MissingDataError,
    ProgramError,
    ProgramFailedError,
    ReplayError,
    StepError,
)
from tracer.proof import proof

pytestmark = [pytest.mark.usefixtures("unsealed"), pytest.mark.timeout(120)]
STEPS = 10
Sample = namedtuple("Sample", "features target")


@pytest.fixture(autouse=True)
def _seeded():
    before = rng.capture_state()
    yield
    rng.restore_state(before)


def record(path, program, **options):
    with tracer.record(path, keyframe_every=options.pop("keyframe_every", 4), **options):
        program()
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, module_unsealed):
    """A recorded run of `train`: two epochs of five steps."""
    return record(tmp_path_factory.mktemp("trained") / "t", train)


@pytest.fixture(scope="class")
def session(trained):
    """One session on it, which all tests move about."""
    with Session(trained, program=train) as session:
        yield session


def bits(state):
    return {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in state.items()}


class TestSeeking:
    @given(order=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=4))
    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_order_is_exact(self, session, order):
        for k in order:
            verdict = session.seek(k).step()
            assert (verdict.kind, verdict.step) == ("verified", k), verdict
            assert session.position == k + 1
            assert bits(session.state) == bits(session.trace.state(k + 1))

    def test_every_state_is_the_recorded_one_before_any_step(self, session):
        for k in (7, 0, STEPS, 4, 3):
            session.seek(k)
            assert session.step_number == k
            assert bits(session.state) == bits(session.trace.state(k))

    def test_running_on_over_the_end_of_an_epoch(self, session):
        session.seek(2)
        assert [v.kind for v in session.run(6)] == ["verified"] * 6
        assert session.verdict.step == 7

    def test_back_and_again(self, session):
        session.seek(6)
        first = session.step()
        session.back()
        assert session.position == 6
        assert session.step() == first

    def test_the_batch_and_the_gradients_of_a_step(self, session):
        session.seek(3)
        x, _ = session.batch
        assert torch.equal(x, session.trace.batch(3)[0])
        session.step()
        assert session.grads["weight"].shape == (1, 3)

    @pytest.mark.parametrize("k", [-1, STEPS + 1, 10**9])
    def test_out_of_range(self, session, k):
        session.seek(2)
        with pytest.raises(StepError) as error:
            session.seek(k)
        assert error.value.step == k
        assert session.position == 2

    def test_past_the_end(self, session):
        session.seek(STEPS)
        with pytest.raises(StepError):
            session.step()
        assert session.seek(1).step().verified

    def test_before_the_beginning(self, session):
        session.seek(0)
        with pytest.raises(StepError):
            session.back()


def test_the_callers_randomness_and_the_programs_are_apart(trained):
    """Both live in one process: what one draws between two steps, the other must not miss."""

    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.randn()

    with Session(trained, program=train) as session:
        session.seek(2)
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        expected = draw(), draw()
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        first = draw()
        assert session.step().verified
        assert (first, draw()) == expected
        assert session.step().verified
        assert session.grads
        draw()
        assert session.run(5)[-1].verified


LATER = []


def collate(samples):
    return Sample(torch.stack([s[0] for s in samples]), {"y": torch.stack([s[1] for s in samples]), "n": len(samples)})


def train_named():
    """Batches are named tuples; some state is None at first, some grows in a defaultdict."""
    model, optimizer = make()
    x, y = data()
    batches = DataLoader(list(zip(x, y, strict=True)), batch_size=4, shuffle=True, collate_fn=collate)
    before, seen = None, defaultdict(list)
    for _ in range(2):
        for batch in batches:
            loss = ((model(batch.features) - batch.target["y"]) ** 2).mean()
            if before is not None:
                loss = loss + 0.1 * (loss - before)
            seen[batch.target["n"]].append(loss.item())
            before = sum(sum(v) for v in seen.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tracer.capture("seen/total", torch.tensor([before, 1.0]))


def test_named_tuples_none_and_a_defaultdict(tmp_path):
    path = record(tmp_path / "t", train_named, keyframe_every=1)
    with Session(path, program=train_named) as session:
        for k in (8, 0, 5, 1, 0):
            verdict = session.seek(k).step()
            assert verdict.verified, (k, verdict)
            assert torch.equal(session.captures["seen/total"], session.trace.captures["seen/total"][k])


def test_a_loop_without_a_loader(tmp_path):
    path = record(tmp_path / "t", train_without_loader)
    with Session(path, program=train_without_loader) as session:
        for k in random.Random(3).sample(range(12), 5):
            assert session.seek(k).step().verified


def test_replaying_leaves_this_process_as_it_was(trained):
    before = hooks.torch.Tensor.backward, torch.autograd.backward
    with Session(trained, program=train) as session:
        session.seek(3).step()
    assert (hooks.torch.Tensor.backward, torch.autograd.backward) == before
    assert active.listener() is None


class TestRefusals:
    def test_a_block_needs_its_function(self, trained):
        with pytest.raises(ProgramError, match="program="):
            Session(trained)

    def test_metrics_alone_cannot_be_replayed(self, tmp_path):
        path = record(tmp_path / "t", train, detail="metrics")
        with pytest.raises(MissingDataError, match="metrics"):
            Session(path, program=train)

    def test_another_environment_is_refused_unless_one_goes_on_anyway(self, tmp_path):
        path = record(tmp_path / "t", train)
        facts = manifest.read(path)
        replace(facts, environment={**facts.environment, "torch": "1.13.0"}).write(path)
        with pytest.raises(EnvironmentMismatchError, match=r"torch: recorded 1\.13\.0"):
            Session(path, program=train)
        with Session(path, program=train, anyway=True) as session:
            assert session.seek(4).step().verified

    def test_a_program_that_raises(self, trained):
        def broken():
            raise LookupError("theirs")

        with Session(trained, program=broken) as session, pytest.raises(ProgramFailedError, match="theirs"):
            session.seek(5)

    def test_a_program_that_never_trains(self, trained):
        with Session(trained, program=lambda: None) as session, pytest.raises(ReplayError):
            session.seek(5)

    def test_a_program_of_another_shape(self, trained):
        def other():
            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                model(torch.ones(1, 4)).sum().backward()
                optimizer.step()

        with Session(trained, program=other) as session, pytest.raises(ReplayError):
            session.seek(5)


class TestDivergence:  # B2
    @pytest.fixture
    def nudged(self, monkeypatch):
        """The same program on a machine that computes a little otherwise: at the step after LATER is filled, or at call `at`."""
        calls = []

        def arm(at=None):
            original = torch.optim.SGD.step

            def step(self, closure=None):
                result = original(self, closure)
                calls.append(1)
                if LATER or len(calls) == at:
                    with torch.no_grad():
                        bias = self.param_groups[0]["params"][1]
                        bias.copy_(torch.nextafter(bias, torch.tensor(9e9)))
                    LATER.clear()
                return result

            monkeypatch.setattr(torch.optim.SGD, "step", step)

        LATER.clear()
        return arm

    def test_it_names_the_tensor_the_distance_and_a_cause(self, trained, nudged):
        nudged()
        with Session(trained, program=train) as session:
            session.seek(6)
            LATER.append(1)
            verdict = session.step()
            assert (verdict.kind, verdict.step, verdict.tensor, verdict.max_ulp) == ("diverged", 6, "bias", 1)
            assert verdict.cause
            following = session.step()
            assert following.kind == "unverifiable"
            assert "step 6" in following.detail
            # A keyframe puts it right again.
            assert session.seek(6).step().verified

    def test_a_loss_that_was_recorded_otherwise(self, tmp_path, monkeypatch):
        # Asked of the environment: a variable of the program's would be state, and put back.
        def program():
            model, optimizer = make()
            for x, y in [tuple(v[:4] for v in data())] * 4:
                optimizer.zero_grad()
                loss = ((model(x) - y) ** 2).mean()
                (loss + ("SHIFTED" in os.environ)).backward()
                optimizer.step()

        path = record(tmp_path / "t", program)
        monkeypatch.setenv("SHIFTED", "1")
        with Session(path, program=program) as session:
            verdict = session.seek(0).step()
        assert (verdict.kind, verdict.tensor) == ("diverged", "loss")
        assert verdict.max_ulp > 1000

    def test_verify_reports_and_goes_on_at_the_next_keyframe(self, trained, nudged):
        nudged(at=6)
        done = []
        report = verify(trained, program=train, progress=lambda *counts: done.append(counts))
        kinds = [v.kind for v in report.verdicts]
        assert kinds[:6] == ["verified"] * 5 + ["diverged"]
        with tracer.open_trace(trained) as trace:
            anew = min(k for k in trace.keyframes if k > 5)
        assert kinds[6:anew] == ["unverifiable"] * (anew - 6)
        assert kinds[anew:] == ["verified"] * (STEPS - anew)
        assert done[-1] == (STEPS, STEPS)
        assert report.first_divergence.step == 5
        assert not report.verified

    def test_hidden_state_is_found_out(self, tmp_path):
        hidden = iter(range(1, 1000))
        feed = lambda: next(hidden)  # noqa: E731

        def program():
            model, optimizer = make()
            for x, y in [tuple(v[:4] for v in data())] * 4:
                optimizer.zero_grad()
                (((model(x) - y) ** 2).mean() * np.float32(feed())).backward()
                optimizer.step()

        path = record(tmp_path / "t", program)
        hidden = iter(range(500, 1000))
        with Session(path, program=program) as session:
            verdict = session.seek(0).step()
        assert verdict.kind != "verified"


class TestVerify:
    def test_all_steps(self, trained):  # B2
        report = verify(trained, program=train)
        assert report.verified
        assert report.as_dict() == {
            "steps": STEPS,
            "verified": STEPS,
            "diverged": 0,
            "unverifiable": 0,
            "first_divergence": None,
        }

    def test_what_was_found_is_kept_also_where_it_is_broken_off(self, tmp_path):
        path = record(tmp_path / "t", train)

        def enough(done, count):
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            verify(path, program=train, progress=enough)
        with tracer.open_trace(path) as trace:
            assert proof(trace).words.startswith(f"proven in part: 4 of {STEPS} steps, on ")
            assert proof(trace).torch == (torch.__version__,)
        assert verify(path, program=train).notes == []
        with tracer.open_trace(path) as trace:
            assert proof(trace).whole

    def test_a_trace_that_cannot_be_written_is_verified_all_the_same(self, tmp_path):
        path = record(tmp_path / "t", train)
        (path / "verdicts").write_text("in the way")
        report = verify(path, program=train)
        assert report.verified
        assert "could not be kept" in report.notes[0]

    def test_some_steps(self, trained):
        report = verify(trained, (3, 6), program=train)
        assert [v.step for v in report.verdicts] == [3, 4, 5]
        assert report.verified

    @pytest.mark.parametrize("steps", [(-1, 3), (0, STEPS + 1), (5, 4)])
    def test_steps_that_there_are_not(self, trained, steps):
        with pytest.raises(StepError):
            verify(trained, steps, program=train)


def test_spans_of_a_resumed_run(tmp_path):  # S1.3
    path = record(tmp_path / "t", train)
    with tracer.record(path, append=True, at=4):
        model, optimizer = make()
        with torch.no_grad():
            model.weight += 1
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    with tracer.open_trace(path) as trace:
        assert [(s.session, s.first, s.end) for s in spans(trace)] == [(0, 0, 4), (1, 4, 7)]


class Nothing:
    """A past without facts of its own."""

    def __init__(self, holes=(), device=None, compiled=()):
        self.compiled = compiled
        environment = {"device_name": device}
        self.trace = type("T", (), {"manifest": type("M", (), {"environment": environment})})
        self._holes = holes

    def holes(self, k):
        return list(self._holes)


@pytest.mark.parametrize(
    ("context", "problems", "past", "words"),
    [
        (Context({"torch": ("1", "2")}), ["x"], Nothing(), "another torch version"),
        (Context({}, ["train.py"], True), ["x"], Nothing(), "source changed"),
        (Context({}, ["train.py"], False), ["a: cannot"], Nothing(["b"]), "could be put back: a: cannot"),
        (Context(), [], Nothing(["main.file (io.TextIOWrapper)"]), "hidden state"),
        (Context(), [], Nothing(compiled=(0, 4)), "torch.compile"),
        (Context(), [], Nothing(device="H200"), "nondeterministic kernel"),
        (Context(), [], Nothing(), "not recorded"),
    ],
)
def test_the_likeliest_cause_first(context, problems, past, words):
    assert words in likely_cause(context, problems, past, 3)


def test_a_keyframe_that_was_tampered_with_is_not_believed(tmp_path, monkeypatch):
    """What is put in place is not what was recorded: the first step says so."""
    path = record(tmp_path / "t", train)
    original = keyframe._restore_tensors

    def restore(packed, layout, registry):
        changed = bytearray(packed)
        changed[2] ^= 1
        original(bytes(changed), layout, registry)

    with Session(path, program=train) as session:
        session.seek(2).step()
        monkeypatch.setattr(keyframe, "_restore_tensors", restore)
        verdict = session.seek(4).step()
        assert verdict.kind == "diverged"
        assert verdict.tensor in ("weight", "loss")
        assert verdict.max_ulp


def test_after_a_step_that_diverged_the_very_next_keyframe_is_put_in_place(scribe, tmp_path):
    """A program seeded by the clock: its first step cannot be made again, all others can."""
    (tmp_path / "train.py").write_text(
        "import time\n"
        "import torch\n"
        "torch.manual_seed(time.time_ns() % 100000)\n"
        "model = torch.nn.Linear(3, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for _ in range(6):\n"
        "    optimizer.zero_grad()\n"
        "    (model(torch.randn(4, 3)) ** 2).mean().backward()\n"
        "    optimizer.step()\n"
    )
    trace = scribe.record(tmp_path / "t", tmp_path / "train.py")
    assert [verdict.kind for verdict in verify(trace).verdicts] == ["diverged", *["verified"] * 5]


def test_training_in_a_thread_of_its_own_is_named(scribe, tmp_path):
    """A replay follows the main thread alone: of such a run it says why it is unverifiable."""
    script = tmp_path / "threaded.py"
    script.write_text(
        "import threading, torch\n"
        "def train():\n"
        "    model = torch.nn.Linear(2, 1)\n"
        "    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    for _ in range(6):\n"
        "        optimizer.zero_grad()\n"
        "        model(torch.ones(3, 2)).sum().backward()\n"
        "        optimizer.step()\n"
        "worker = threading.Thread(target=train)\n"
        "worker.start()\n"
        "worker.join()\n"
    )
    report = verify(scribe.record(tmp_path / "t", script))
    assert {verdict.kind for verdict in report.verdicts} == {"unverifiable"}
    assert "it was trained in train, a thread of its own" in report.verdicts[0].detail
