"""How batches are made: noted where they arise, handed on plain, kept in the place of what never comes again (C1)."""

from __future__ import annotations

import os
import random
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data._utils import fetch as torch_fetch

import tracer
from tracer import making, stored
from tracer.batches import BatchEncoder

WIDE = 80


class Plain(Dataset):
    """Samples that are the same in each epoch."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((WIDE,), float(index))


class Noisy(Plain):
    """Samples that never come again, by all the generators there are."""

    def __init__(self) -> None:
        self.own = [{"rng": np.random.default_rng(7)}]

    def __getitem__(self, index: int) -> torch.Tensor:
        moved = super().__getitem__(index) + torch.randn(WIDE) + random.random()
        return moved + float(np.random.rand()) + float(self.own[0]["rng"].random())


class Nested(Plain):
    """A dataset that itself goes through a loader."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return sum(DataLoader(Plain(), 4)) * index


class Odd(Plain):
    """A dataset whose attributes cannot be looked at."""

    @property
    def __dict__(self) -> dict:
        raise RuntimeError("not to be looked at")


@pytest.fixture
def noting():
    """Recipes are noted."""
    found = making.Making()
    found.want()
    found.asked = True
    with making.watched(found):
        yield found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_made_again_from_its_recipe(noting: making.Making, workers: int) -> None:
    """Of all generators what it used is noted; afterwards they stand as they did."""
    loader = DataLoader(Noisy(), 8, shuffle=True, num_workers=workers)
    iterator = iter(loader)
    pairs = [(batch, noting.recipe(batch)) for batch in iterator]
    after = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(0)
    for batch, recipe in pairs[::-1]:
        assert recipe is not None
        assert recipe.worker is None or recipe.worker[1] == workers
        buffers: list = []
        node = recipe.encode(buffers)
        again, problem = making.again(iterator, making.Recipe.decode(node, [bytes(b) for b in buffers].__getitem__))
        assert problem is None
        assert torch.equal(batch, again)
    if workers == 0:  # The generators are as the last fetch that was made again left them: the first.
        making.again(iterator, pairs[-1][1])
        assert (torch.rand(1), random.random(), np.random.rand()) == after
    assert not noting.steady


def test_what_uses_no_randomness_is_steady(noting: making.Making) -> None:
    """No generator is in its recipe, and its samples are known to come again."""
    for batch in DataLoader(Plain(), 8):
        assert noting.recipe(batch).random == {}
    assert noting.steady


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_inside_a_dataset_gets_plain_batches(noting: making.Making, workers: int) -> None:
    """What comes along with a worker's batch is for the loop that waits for it alone."""
    found = list(DataLoader(Nested(), 8, num_workers=workers))
    assert torch.equal(torch.cat(found), torch.stack([Nested()[i] for i in range(24)]))


def test_workers_that_outlive_the_recording_give_plain_batches() -> None:
    """Their batches are themselves also where nobody takes off what comes along."""
    found = making.Making()
    found.want()
    with making.watched(found):
        iterator = iter(DataLoader(Plain(), 8, num_workers=1))
        first = next(iterator)
    assert torch.equal(torch.cat([first, *iterator]), torch.stack([Plain()[i] for i in range(24)]))
    assert torch_fetch._MapDatasetFetcher.fetch.__qualname__ == "_MapDatasetFetcher.fetch"
    assert not hasattr(torch_fetch._MapDatasetFetcher.fetch, "__wrapped__")


def test_what_goes_wrong_in_the_noting_ends_the_noting_alone(noting: making.Making) -> None:
    """The program has its batches, each made once."""
    found = list(DataLoader(Odd(), 8))
    assert torch.equal(torch.cat(found), torch.stack([Plain()[i] for i in range(24)]))
    assert noting.recipe(found[-1]) is None


def test_samples_that_come_again_are_stored_once_however_long_an_epoch_is() -> None:
    """A pool is not given up within the first epoch, in which nothing can have been met again."""
    encoder = BatchEncoder()
    data = torch.arange(6000 * WIDE, dtype=torch.float32).reshape(6000, WIDE)
    for batch in [*data.split(500), *data.split(500)]:
        assert not encoder.encode(batch, steady=True).inline
    assert encoder.counts == {f"float32-{WIDE}": 6000}
    other = BatchEncoder()
    assert [bool(other.encode(batch).inline) for batch in data.split(500)] == [False] * 9 + [True] * 3


def test_samples_of_a_batch_that_lies_otherwise_in_memory() -> None:
    """Rows are hashed in one piece; each is known again however its batch lies, and the batch comes back as it lay."""
    encoder = BatchEncoder()
    data = torch.arange(8 * WIDE, dtype=torch.float32).reshape(8, WIDE)
    one, turned = encoder.encode(data), encoder.encode([data.t().contiguous().t(), data.numpy()[:, ::-1]])
    assert encoder.counts == {f"float32-{WIDE}": 16}
    assert turned.ids[0] == one.ids[0]
    samples = torch.cat([data, data.flip(1)]).numpy()
    back, array = stored.batch(turned.node, [], turned.ids.__getitem__, lambda pool, ids: samples[ids].tobytes())
    assert (back.stride(), array.strides) == ((1, 8), (4 * WIDE, -4))
    assert torch.equal(back, data)
    assert (array == data.numpy()[:, ::-1]).all()


def _train(loader: DataLoader) -> None:
    model = torch.nn.Linear(WIDE, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _epoch in range(2):
        for batch in loader:
            model(batch).sum().backward()
            optimizer.step()


def test_whole_batches_then_recipes(tmp_path) -> None:
    """So many bytes are stored whole, to be looked at; what is steady only gives way to a limit that was asked for."""
    row = WIDE * 4
    with tracer.record(tmp_path / "noisy", batch_bytes=2 * 8 * row):
        _train(DataLoader(Noisy(), 8))
    with tracer.record(tmp_path / "plain"):
        _train(
            DataLoader(
                TensorDataset(torch.rand(24, WIDE)), 8, collate_fn=lambda rows: torch.stack([r for (r,) in rows])
            )
        )
    with tracer.open_trace(tmp_path / "noisy") as trace:
        # The third is the one that shows the limit to have been passed; it was made by then.
        assert ["made" in trace.record(k) for k in range(6)] == [False] * 3 + [True] * 3
    with tracer.open_trace(tmp_path / "plain") as trace:
        assert not any("made" in trace.record(k) for k in range(6))
        assert trace.sample_counts == {f"float32-{WIDE}": 24}


def test_a_fork_that_is_no_worker_notes_nothing(noting: making.Making) -> None:
    """What a child of the program fetches is its own."""
    pid = os.fork()
    if pid == 0:
        batch = next(iter(DataLoader(Plain(), 8)))
        os._exit(0 if noting.recipe(batch) is None else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_nobody_asks_after_is_not_held(tmp_path) -> None:
    """A batch of a validation, which is no step, is the program's alone."""
    seen = []

    def collate(rows: list[torch.Tensor]) -> torch.Tensor:
        batch = torch.stack(rows)
        seen.append(weakref.ref(batch))
        return batch

    with tracer.record(tmp_path / "t", batch_bytes=0):
        _train(DataLoader(Noisy(), 8))
        with torch.no_grad():
            for _batch in DataLoader(Plain(), 8, collate_fn=collate):
                pass
        del _batch
        assert [ref() for ref in seen] == [None] * 3
