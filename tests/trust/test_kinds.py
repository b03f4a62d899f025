"""Tensors of unusual kinds, as captures, as state, in batches: each comes back bit for bit, or is refused by name, in one line,
and the recording goes on. # S1.2
"""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

import tracer
from tests.trust.test_numbers import NoSealer, bits
from tracer.errors import MissingDataError
from tracer.repair import repair

STEPS = 2


class Sub(torch.Tensor):
    """A subclass that adds nothing: its bits are kept, as those of a plain tensor."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_subclass(cls, values)


class Wrapper(torch.Tensor):
    """A subclass that holds its elements somewhere else, as a DTensor does."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*(a.inner if isinstance(a, Wrapper) else a for a in args), **(kwargs or {}))


def of_bytes(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(4 * dtype.itemsize, dtype=torch.uint8).view(dtype)


def kinds() -> dict[str, torch.Tensor]:
    """What is kept."""
    torch.manual_seed(3)
    some = torch.randn(4, 6)
    paired = torch.complex(some, some.flip(0))
    named = ("float8_e8m0fnu", "float4_e2m1fn_x2", "uint4", "int3", "bits8", "bits16", "complex32")
    return {
        **{name: of_bytes(getattr(torch, name)) for name in named if hasattr(torch, name)},
        "conjugate": paired.conj(),
        "negative": paired.conj().imag,
        "bool": some > 0,
        "empty": some[:0],
        "one": some[0, :1],
        "every second": some[:, ::2].T,
        "expanded": some[:1].expand(4, 6),
        "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "inference": made_in_inference(),
        "in a graph": some.clone().requires_grad_() * 2,
        "subclass": Sub(some),
        "wrapper": Wrapper(some),
    }


def made_in_inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.randn(200, 200)


def refused() -> dict[str, tuple[torch.Tensor, str]]:
    """What is refused, and the word that says why."""
    some = torch.randn(4, 4)
    with FakeTensorMode():
        fake = torch.empty(4)
    pieces = [torch.randn(2, 3), torch.randn(4, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says of most of these that they are prototypes
        return unusual(some, pieces, fake)


def unusual(some, pieces, fake):
    return {
        "coo": (some.to_sparse(), "sparse_coo"),
        "csr": (some.to_sparse_csr(), "sparse_csr"),
        "bsc": (some.to_sparse_bsc((2, 2)), "sparse_bsc"),
        "quantized": (torch.quantize_per_tensor(some, 0.1, 10, torch.quint8), "quantized"),
        "jagged": (torch.nested.nested_tensor(pieces, layout=torch.jagged), "nested"),
        "nested": (torch.nested.nested_tensor(pieces), "nested"),
        "meta": (torch.empty(4, device="meta"), "without data"),
        "fake": (fake, "without data"),
        "mkldnn": (some.to_mkldnn(), "mkldnn"),
    }


def text(value: torch.Tensor) -> bytes:
    plain = value.inner if isinstance(value, Wrapper) else value.as_subclass(torch.Tensor)
    return bits(plain.resolve_conj().resolve_neg())


class Items(torch.utils.data.IterableDataset):
    """Batches that have a tensor of each kind."""

    def __init__(self, extra) -> None:
        self.extra = extra

    def __iter__(self):
        for _ in range(STEPS):
            yield torch.randn(2, 3), self.extra


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(trace, what was kept, what was refused, what was logged)."""
    path = tmp_path_factory.mktemp("kinds") / "t"
    good, bad = kinds(), refused()
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    for name, value in good.items():
        model.register_buffer(f"good {name}", value)
    for name, (value, _) in bad.items():
        model.register_buffer(f"bad {name}", value)
    optimizer = torch.optim.SGD([model.weight, model.bias], lr=0.1)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("rewind").addHandler(handler)
    loader = torch.utils.data.DataLoader(Items([*good.values(), bad["coo"][0]]), batch_size=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracer.recorder.Sealer", NoSealer)
        with tracer.record(path, detail="full"):
            for x, _ in loader:
                for name, value in good.items():
                    tracer.capture(f"good/{name}", value)
                for name, (value, _) in bad.items():
                    tracer.capture(f"bad/{name}", value)
                tracer.capture("bad/text", "no tensor")
                tracer.capture("bad/ragged", [[1.0], [1.0, 2.0]])
                tracer.log(right=1.0, words="many", several=torch.ones(2))
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()
    logging.getLogger("rewind").removeHandler(handler)
    return path, good, bad, lines


@pytest.mark.parametrize("form", ["tail", "sealed"])
def test_what_is_kept_is_kept_bit_for_bit(recorded, form):
    path, good, bad, _ = recorded
    if form == "sealed":
        found = repair(path)
        assert not [line for line in found if "damaged" in line or "cannot" in line], found
    with tracer.open_trace(path) as trace:
        assert trace.steps == STEPS
        batch = trace.batch(1)[1]
        for i, (name, value) in enumerate(good.items()):
            for found in (trace.captures[f"good/{name}"][1], trace.state(1)[f"good {name}"], batch[i]):
                assert (found.dtype, found.shape) == (value.dtype, value.shape), name
                assert bits(found) == text(value), name
            # Widened where NumPy has no such type.
            assert len(trace.captures[f"good/{name}"].read([0, 1])) == 2
        assert torch.equal(batch[-1].to_dense(), bad["coo"][0].to_dense())
        assert trace.sql('select "right", step from steps order by step').fetchall() == [(1.0, 0), (1.0, 1)]


def test_what_is_refused_is_refused_by_name_in_one_line(recorded):
    path, _, bad, lines = recorded
    with tracer.open_trace(path) as trace:
        holes = trace.keyframe(0)[0]["holes"]
        for name, (_, why) in bad.items():
            assert [line for line in lines if f"'bad/{name}'" in line] == [
                f"capture 'bad/{name}' is left out: the tensor is {why}"
            ]
            said = [line for line in lines if line.startswith(f"bad {name} is not recorded, it is {why}")]
            assert len(said) == 1, lines
            assert f"bad/{name}" not in trace.captures
            assert f"bad {name}" not in trace.state(1)
            assert f"bad {name} ({why})" in holes
    for what in ("capture 'bad/text'", "capture 'bad/ragged'", "scalar 'words'", "scalar 'several'"):
        assert len([line for line in lines if line.startswith(f"{what} is left out: ")]) == 1, (what, lines)
    assert not [line for line in lines if "recording stopped" in line]


@pytest.mark.parametrize("kind", ["quantized", "meta", "fake", "mkldnn"])
def test_a_batch_with_one_that_cannot_be_kept_is_refused_when_it_is_asked_for(unsealed, tmp_path, kind):
    value, why = refused()[kind]
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.record(tmp_path / "t"):
        for x, _ in torch.utils.data.DataLoader(Items(value), batch_size=None):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.steps == STEPS
        with pytest.raises(MissingDataError, match=why):
            trace.batch(1)
