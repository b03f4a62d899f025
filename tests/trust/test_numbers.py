"""Every bit of every kind of tensor that a training can hold comes back: through a recording, a tail, and a sealed segment. # S1.2"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tracer
from tests.tracer.training import train
from tracer.repair import repair

STEPS = 3
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    *(getattr(torch, name) for name in ("uint16", "uint32", "uint64", "float8_e4m3fnuz", "float8_e5m2fnuz")),
]  # fmt: skip
ODD = {
    2: [0x7E00, 0x7C01, 0x8000, 0x0001, 0xFC00, 0x7FFF],
    4: [0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0x00000001, 0xFF800000],
    8: [0x7FF8000000000000, 0x7FF0000000000001, 2**64 - 1, 2**63, 1, 0xFFF0000000000000],
}
"""NaN with payloads, -0.0, denormals, infinities."""


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def filled(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """`count` elements of any bits, odd ones first."""
    size = torch.empty(0, dtype=dtype).element_size()
    dice = np.random.default_rng(seed)
    data = dice.integers(0, 256, count * size, np.uint8)
    if dtype is torch.bool:
        data &= 1
    width = size // 2 if dtype.is_complex else size
    if width in ODD and (dtype.is_floating_point or dtype.is_complex):
        odd = np.array(ODD[width], f"<u{width}").view(np.uint8)[: len(data)]
        data[: len(odd)] = odd
    return (
        torch.frombuffer(bytearray(data.tobytes()), dtype=torch.uint8).view(dtype)
        if count
        else torch.empty(0, dtype=dtype)
    )


class Odd(torch.nn.Module):
    """A buffer of each type, and tensors of odd shapes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        for i, dtype in enumerate(DTYPES):
            self.register_buffer(f"b{i}", filled(dtype, 12, i))
        base = filled(torch.float32, 24, 99)
        self.register_buffer("scalar", filled(torch.float64, 1, 3).reshape(()))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("strided", base[::2])
        self.register_buffer("transposed", base.reshape(4, 6).T)
        self.register_buffer("expanded", base[:3].reshape(3, 1).expand(3, 5))
        self.register_buffer("shared", base)
        self.register_buffer("part", base[4:9])
        self.parameter = torch.nn.Parameter(filled(torch.float32, 6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def stir(model: Odd, k: int) -> None:
    """New bits in every buffer."""
    with torch.no_grad():
        for i, dtype in enumerate(DTYPES):
            getattr(model, f"b{i}").view(torch.uint8).copy_(filled(dtype, 12, 1000 * k + i).view(torch.uint8))
        model.shared.copy_(filled(torch.float32, 24, 77 + k))
        model.scalar.fill_(float(k) - 0.0)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers") / "t"
    model = Odd()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    states, batches, captured = [], [], []
    data = [torch.utils.data.default_collate([filled(d, 4, 7 * k) for k in range(2)]) for d in DTYPES[:14]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracer.recorder.Sealer", NoSealer)
        with tracer.record(path, detail="full"):
            for k, batch in enumerate(torch.utils.data.DataLoader([data] * STEPS, batch_size=None)):
                stir(model, k)
                batches.append([bits(t) for t in batch])
                shown = {f"layer/{d}".replace("torch.", ""): filled(d, 6, k).reshape(2, 3) for d in DTYPES}
                for key, value in shown.items():
                    tracer.capture(key, value)
                captured.append({key: bits(value) for key, value in shown.items()})
                optimizer.zero_grad()
                model(torch.ones(2)).sum().backward()
                optimizer.step()
                states.append({name: (bits(t), t.dtype, t.shape) for name, t in model.state_dict().items()})
    return path, states, batches, captured


class NoSealer:
    def __init__(self, path, session):
        pass

    def finish(self):
        pass


@pytest.mark.parametrize("form", ["tail", "sealed"])
def test_every_bit_comes_back(odd, form):
    path, states, batches, captured = odd
    if form == "sealed":
        repair(path)
    with tracer.open_trace(path) as trace:
        assert trace.damage() == []
        for k in range(STEPS):
            found = trace.state(k + 1)
            assert list(found) == list(states[k])
            for name, (data, dtype, shape) in states[k].items():
                assert (bits(found[name]), found[name].dtype, found[name].shape) == (data, dtype, shape), (k, name)
            assert [bits(t) for t in trace.batch(k)] == batches[k]
            for key, data in captured[k].items():
                assert bits(trace.captures[key][k]) == data, (k, key)


def test_rows_beyond_what_32_bits_count():
    """Runs of more than 2^31 samples and steps: sets, places and rows by arithmetic alone."""
    from tracer.ranges import Ranges

    many = Ranges(((0, 2**33), (2**34, 2**35)))
    assert len(many) == 2**33 + 1 + 2**35 - 2**34 + 1
    assert many.place(2**34) == 2**33 + 1
    assert many.members(2**33, 2**33 + 2) == [2**33, 2**34]
    assert 2**33 + 1 not in many


@pytest.mark.parametrize("value", [2**53 + 1, -(2**63), 1 - 2j])
def test_a_number_that_no_float_holds_is_kept_as_an_array_of_one(tmp_path, value):
    captured = torch.tensor(value)

    def each(step, model, loss):
        tracer.capture("odd", captured)
        tracer.capture("plain", torch.tensor(2**53 - step))

    with tracer.record(tmp_path / "t"):
        train(epochs=1, each=each)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert torch.equal(trace.captures["odd"][3], captured.reshape(1))
        assert trace.sql("select plain from steps where step = 3").fetchall() == [(2**53 - 3,)]
