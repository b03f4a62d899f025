"""What the modules of a program gave in a step, and each sample's loss, by re-execution (C3)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional
from torch.nn.modules import module as modules
from torch.utils.data import DataLoader, TensorDataset

import tracer
from replay import Session, activations
from tracer import rng
from tracer.errors import ProgramFailedError, UsageError

pytestmark = [pytest.mark.usefixtures("unsealed"), pytest.mark.timeout(120)]
LATER = []


@pytest.fixture(autouse=True)
def _seeded():
    before = rng.capture_state()
    yield
    rng.restore_state(before)


@pytest.fixture(autouse=True)
def _nothing_stays():
    """Whatever happens in a test, nothing stays on torch."""
    before = {name: getattr(functional, name) for name in activations.LOSSES}
    counting = modules._has_any_global_hook
    yield
    assert {name: getattr(functional, name) for name in activations.LOSSES} == before
    assert modules._has_any_global_hook is counting
    assert not modules._global_forward_hooks


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(inplace=True))
        self.noise = torch.nn.Dropout(0.3)
        self.head = torch.nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.noise(self.body(x)))


def data(samples=20):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 3, generator=generator), torch.randint(0, 2, (samples,), generator=generator)


def fed(epochs=2):
    """A classifier fed by a loader; validation with gradients on between the epochs, dropout within the step."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True)
    for _ in range(epochs):
        for x, y in loader:
            for wanted in LATER:
                wanted()
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        criterion(model(data()[0]), data()[1])


def by_hand(steps=8):
    """An MLP without a loader, called twice a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, _ = data()
    for k in range(steps):
        optimizer.zero_grad()
        first = functional.mse_loss(model(x[k : k + 4]), torch.ones(4, 1), reduction="sum")
        second = functional.mse_loss(model(x[k + 4 : k + 7]), torch.zeros(3, 1))
        (first + second).backward()
        optimizer.step()


def record(path, program, **options):
    with tracer.record(path, keyframe_every=4, **options):
        program()
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, module_unsealed):
    return record(tmp_path_factory.mktemp("fed") / "t", fed)


def recorded_loss(session, k):
    ((loss,),) = session.trace.sql("select loss from steps where step = ?", [k]).fetchall()
    return loss


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("k", [0, 3, 4, 5, 9])
def test_fed_by_a_loader(trained, k):
    with Session(trained, program=fed) as session:
        session.seek(k)
        state, (x, y) = {n: t.clone() for n, t in session.state.items()}, session.batch
        assert session.step(watch=True).verified
        given = session.activations
        assert set(given) == {"body.0", "body.1", "body", "noise", "head", "<model>", "criterion"}
        model = Net()
        model.load_state_dict(state)
        with torch.no_grad():
            linear = model.body[0](x)
            assert same(given["body.0"], linear)
            assert same(given["body.1"], linear.relu())
            assert same(given["body"], given["body.1"])
            kept = given["noise"] != 0
            assert torch.allclose(given["noise"], kept * given["body"] / 0.7)
            assert same(given["head"], model.head(given["noise"]))
            assert same(given["<model>"], given["head"])
            each = functional.cross_entropy(given["head"], y, reduction="none")
        assert same(session.sample_losses["cross_entropy"], each)
        assert list(session.sample_losses) == ["cross_entropy"]
        assert float(each.mean()) == pytest.approx(recorded_loss(session, k), rel=1e-6)
        assert session.watched.left_out == []
        if k < 9:
            assert session.step().verified


def test_without_a_loader_and_called_twice(tmp_path):
    trace = record(tmp_path / "t", by_hand)
    with Session(trace, program=by_hand) as session:
        for k in (0, 5, 2):
            session.seek(k)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
            model.load_state_dict(dict(session.state))
            x, _ = data()
            assert session.step(watch=True).verified
            given = session.activations
            assert set(given) == {f"{n}{c}" for n in ("0", "1", "2", "<model>") for c in ("", "#1")}
            with torch.no_grad():
                for call, inputs in (("#1", x[k : k + 4]), ("", x[k + 4 : k + 7])):
                    for i, layer in enumerate(model):
                        inputs = layer(inputs)
                        assert same(given[f"{i}{call}"], inputs)
            losses = session.sample_losses
            assert {n: tuple(t.shape) for n, t in losses.items()} == {"mse_loss#1": (4,), "mse_loss": (3,)}
            total = float(losses["mse_loss#1"].sum() + losses["mse_loss"].mean())
            assert total == pytest.approx(recorded_loss(session, k), rel=1e-6)


def test_a_script(basic):
    with Session(basic) as session:
        session.seek(10)
        (x, _), state = session.batch, copy.deepcopy(dict(session.state))
        assert session.step(watch=True).verified
        convolution = functional.conv2d(x, state["conv.weight"], state["conv.bias"])
        assert same(session.activations["conv"], convolution)
        assert set(session.activations) == {"conv", "norm", "dropout", "fc", "<model>"}
        losses = session.sample_losses["nll_loss"]
        assert losses.shape == (len(x),)
        assert float(losses.mean()) == pytest.approx(recorded_loss(session, 10), rel=1e-6)
        assert session.run(3)[-1].verified


def test_nothing_without_it(trained, monkeypatch):
    with Session(trained, program=fed) as session:
        with pytest.raises(UsageError, match="watch=True"):
            _ = session.activations
        session.seek(2)
        session.step(watch=True)
        assert session.sample_losses
        monkeypatch.setattr(activations.Watch, "_put_on", lambda self: pytest.fail("put on"))
        session.step()
        with pytest.raises(UsageError, match="watch=True"):
            _ = session.sample_losses
        session.back()
        assert session.run(3)[-1].verified


def test_a_program_that_raises_in_that_step(trained):
    seen = []

    def raises():
        if functional.cross_entropy is not original:
            seen.append(len(modules._global_forward_hooks))
            raise ZeroDivisionError

    original = functional.cross_entropy
    with Session(trained, program=fed) as session:
        session.seek(3)
        LATER.append(raises)
        try:
            with pytest.raises(ProgramFailedError):
                session.step(watch=True)
            assert seen
            assert set(seen) == {1}
            assert functional.cross_entropy is original
            assert not modules._global_forward_hooks
        finally:
            LATER.clear()
        with pytest.raises(UsageError):
            _ = session.activations
        assert session.seek(3).step(watch=True).verified
        assert session.activations


def test_what_is_too_large_is_left_out_and_said(trained, monkeypatch):
    monkeypatch.setattr(activations, "ROOM", 200)
    with Session(trained, program=fed) as session:
        session.seek(3)
        assert session.step(watch=True).verified
        assert 0 < sum(t.nbytes for t in session.activations.values()) <= 200
        assert any("more than is left" in said for said in session.watched.left_out)


@pytest.fixture
def watch():
    made = activations.Watch()
    made.begin()
    yield made
    made.end()


def test_outputs_of_every_kind(watch):
    class Gives(torch.nn.Module):
        def forward(self, x):
            return {"a": x, "b": (x + 1, "no tensor", [x + 2])}

    lstm, gives = torch.nn.LSTM(3, 4), Gives()
    lstm(torch.zeros(2, 1, 3))
    gives(torch.ones(1))
    Gives()(torch.ones(1))
    with torch.no_grad():
        gives(torch.ones(7))
    watch.end()
    gives(torch.ones(7))
    names = {id(lstm): "lstm", id(torch): "lstm.0"}
    found = watch.seen(names).activations
    shapes = {n: tuple(t.shape) for n, t in found.items() if n.startswith("lstm")}
    assert shapes == {"lstm[0]": (2, 1, 4), "lstm.1.0": (1, 1, 4), "lstm.1.1": (1, 1, 4)}
    parts = {"a": 1.0, "b.0": 2.0, "b.2.0": 3.0}
    expected = {f"{whose}.{part}": v for whose in ("<Gives>", "<Gives 2>") for part, v in parts.items()}
    assert {n: float(t) for n, t in found.items() if n.startswith("<")} == expected


def test_losses_of_every_kind(watch):
    scores, classes = torch.randn(4, 3, 5), torch.randint(0, 3, (4, 5))
    before = torch.get_rng_state()
    total = functional.cross_entropy(scores, classes)
    functional.cross_entropy(scores[..., 0], torch.softmax(scores[..., 1], 1), None, reduction="sum")
    functional.kl_div(torch.log_softmax(scores, 1), torch.softmax(scores, 1), reduction="batchmean")
    functional.l1_loss(torch.ones(()), torch.zeros(()))
    functional.smooth_l1_loss(scores, scores + 1, reduction="none")
    assert torch.equal(before, torch.get_rng_state())
    watch.end()
    losses = watch.seen({}).sample_losses
    shapes = {n: tuple(t.shape) for n, t in losses.items()}
    assert shapes == {
        "cross_entropy#1": (4,),
        "cross_entropy": (4,),
        "kl_div": (4,),
        "l1_loss": (1,),
        "smooth_l1_loss": (4,),
    }
    assert float(losses["cross_entropy#1"].mean()) == pytest.approx(float(total))


def test_a_model_that_is_compiled(watch):
    layer = torch.nn.Linear(3, 1)
    leave = watch._entered()
    assert not modules._global_forward_hooks
    layer(torch.ones(1, 3))
    leave()
    layer(torch.ones(2, 3))
    watch.end()
    seen = watch.seen({id(layer): "layer"})
    assert {name: len(t) for name, t in seen.activations.items()} == {"layer": 2}
    assert "compiled code" in seen.left_out[0]


def test_inside_a_transform_of_functions_it_is_said(watch):
    layer = torch.nn.Linear(3, 1)
    torch.func.grad(lambda x: layer(x).sum())(torch.ones(3))
    watch.end()
    seen = watch.seen({})
    assert not seen.activations
    assert "function transform" in seen.left_out[0]
