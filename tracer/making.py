"""How a DataLoader made a batch: the indices it asked its dataset for, and the randomness it began with; and the batch made again.

A batch of images that are cropped and flipped at random never comes twice: stored whole, such batches fill a disk. Its recipe is
a few kilobytes, and a digest of the batch proves what is made from it. Recipes are noted where they arise, also in the loader's
worker processes, which are forked from this one; from there they come along with the batch, and are taken off it on arrival.

Room: tracer. May touch: the fetchers of torch's DataLoader while `watched` is open; the random generators and the dataset while
a batch is made again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
import sys
import threading
import types
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import _DatasetKind
from torch.utils.data._utils import fetch as torch_fetch
from torch.utils.data._utils import worker as torch_worker

from tracer import rng, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ARRIVED = 256
_MAX_OBJECTS = 512
_MAX_ITEMS = 256
_AT_FIRST, _EVERY = 8, 64
"""Whether making a batch uses randomness is looked at for the first fetches, then now and then."""
_SEEN, _MOVED, _WANTED = 0, 1, 2
_BARE = (str, bytes, int, float, torch.Tensor, np.ndarray, type, types.ModuleType, type(None))
"""Holds no generator."""
_log = logging.getLogger("rewind")


@dataclass(frozen=True)
class Recipe:
    """What a batch was made of, and from which state of the generators: of the global ones those it used, and the dataset's own.

    `worker`: the number, the count and the seed of the worker process that made it; None in the loop's own process.
    `digest`: see `digest`; None while nobody has asked.
    """

    index: Any
    random: dict[str, Any]
    own: dict[str, Any]
    worker: tuple[int, int, int] | None
    digest: str | None = None

    def encode(self, buffers: list[bytes | memoryview]) -> Any:
        """Return it as JSON, its bytes at the end of `buffers`; a key `$` is in it only where something could not be recorded."""
        fields = {"index": self.index, "random": self.random, "own": self.own, "worker": self.worker}
        return {**{name: values.encode(value, buffers) for name, value in fields.items()}, "digest": self.digest}

    @classmethod
    def decode(cls, node: dict[str, Any], read: values.Reader) -> Recipe:
        """Return what `encode` was given. Raise DamageError, OpaqueValueError."""
        fields = {name: values.decode(node.get(name), read) for name in ("index", "random", "own", "worker")}
        return cls(**fields, digest=node.get("digest"))


def digest(batch: Any) -> str | None:
    """A 128-bit hash of everything in `batch`: structure, types, shapes, bytes; None where something in it cannot be hashed."""
    buffers: list[bytes | memoryview] = []
    opaque: list[str] = []
    node = values.encode(batch, buffers, opaque=opaque, of_objects=True)
    return None if opaque else values.digest(node, buffers)


# -- noting ------------------------------------------------------------------------------------------------------------


class Making:
    """What is known of how batches are made, in this process and in the workers that are forked off it."""

    def __init__(self) -> None:
        """Nothing is known yet; recipes are not noted before they are wanted."""
        _arrived.clear()
        # One page that forked workers share: three flags, each set once and never taken back.
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._pid = os.getpid()
        self._thread = threading.get_ident()
        self._fetches = 0
        self._reader: tuple[int, rng.RngReader] | None = None
        self._last: tuple[Any, Recipe] | None = None
        self.wanted = False
        """Whether recipes are noted."""
        self.asked = False
        """Whether what this process is making will be asked after: of what nobody does, nothing is noted or held."""
        self._off = False

    @property
    def steady(self) -> bool:
        """Whether datasets are asked by index, and making a batch has not used any randomness yet: an epoch gives them again."""
        return bool(self._page[_SEEN]) and not self._page[_MOVED]

    def want(self) -> None:
        """Note recipes from now on; batches that workers have made already come without."""
        self._page[_WANTED] = self.wanted = True

    def recipe(self, batch: Any) -> Recipe | None:
        """How `batch`, which was fetched last, was made; None where that is not known."""
        last, self._last = self._last, None
        found = digest(batch)
        if found is None:
            return None
        if last is not None and last[0] is batch:
            return replace(last[1], digest=found)
        return _arrived.pop(found, None)

    def fetch(self, fetcher: Any, index: Any, native: Callable[[Any], Any], caller: types.CodeType) -> Any:
        """Make a batch natively, once, noting how; whatever goes wrong in the noting ends the noting alone."""
        self._fetches += 1
        look = self._fetches <= _AT_FIRST or not self._fetches % _EVERY
        if not (look or self._page[_WANTED]) or self._off or not (here := self._place()):
            return native(index)
        begun = self._guarded(self._begin, fetcher, index, here)
        batch = native(index)
        made = None if begun is None else self._guarded(self._end, begun, batch, here)
        if made is None:
            return batch
        # Only the worker's own loop takes what comes along off again: a loader inside a dataset hands on plain batches.
        return _Carried(batch, made) if caller is torch_worker._worker_loop.__code__ else batch

    def _place(self) -> int:
        """The process, if it is the loop's own, in its thread, or a worker; else 0."""
        here = os.getpid()
        own = here == self._pid
        return here if (threading.get_ident() == self._thread if own else torch_worker._worker_info is not None) else 0

    def _guarded(self, do: Callable[..., Any], *args: Any) -> Any:
        try:
            return do(*args)
        except Exception as error:  # noqa: BLE001  a dataset of whatever kind: its batches are then stored whole
            self._off = True
            _log.debug("how batches are made is not noted: %s", error)
            return None

    def _begin(self, fetcher: Any, index: Any, here: int) -> _Begun | None:
        page, worker = self._page, torch_worker._worker_info if here != self._pid else None
        page[_SEEN] = 1
        before = self._random(here) if page[_WANTED] or not page[_MOVED] else None
        if before is not None and not page[_MOVED] and own_generators(fetcher):
            page[_MOVED] = 1
        asked = self.asked or worker is not None
        recipe = _noted(fetcher, index, worker) if page[_WANTED] and asked else None
        return None if before is None and recipe is None else _Begun(before, recipe)

    def _end(self, begun: _Begun, batch: Any, here: int) -> Recipe | None:
        """Return the recipe where it is to go along with the batch."""
        after = begun.before if begun.before is None else self._random(here)
        if after != begun.before:
            self._page[_MOVED] = 1
        if begun.recipe is None:
            return None
        assert begun.before is not None
        assert after is not None
        used = rng.moved(begun.before, after)
        recipe = replace(begun.recipe, random={name: s for name, s in begun.recipe.random.items() if name in used})
        if here == self._pid:
            self._last = (batch, recipe)
            return None
        found = digest(batch)
        return None if found is None else replace(recipe, digest=found)

    def _random(self, here: int) -> rng.Rng:
        if self._reader is None or self._reader[0] != here:
            self._reader = (here, rng.RngReader())
        return self._reader[1].snapshot()


class _Begun(NamedTuple):
    """A batch that is being made: the generators before, if they are compared, and its recipe, if that is wanted."""

    before: rng.Rng | None
    recipe: Recipe | None


def _noted(fetcher: Any, index: Any, worker: Any) -> Recipe | None:
    opaque: list[str] = []
    values.encode(index, [], opaque=opaque)
    if opaque:
        return None
    own = {path: rng.generator_state(found) for path, found in own_generators(fetcher).items()}
    told = None if worker is None else (worker.id, worker.num_workers, worker.seed)
    return Recipe(index, rng.capture_state(), own, told)


@contextlib.contextmanager
def watched(making: Making) -> Iterator[None]:
    """Tell `making` of each batch that is made while the block runs, here or in worker processes that were begun meanwhile."""

    def make(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        @functools.wraps(original)
        def fetch(self: Any, possibly_batched_index: Any) -> Any:
            native = functools.partial(original, self)
            return making.fetch(self, possibly_batched_index, native, sys._getframe(1).f_code)

        return fetch

    def stream(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        @functools.wraps(original)
        def fetch(self: Any, possibly_batched_index: Any) -> Any:
            making._page[_MOVED] = 1  # nothing says that a stream comes again
            return original(self, possibly_batched_index)

        return fetch

    kinds = (torch_fetch._MapDatasetFetcher, make), (torch_fetch._IterableDatasetFetcher, stream)
    with contextlib.ExitStack() as stack:
        for kind, wrap in kinds:
            stack.callback(setattr, kind, "fetch", kind.fetch)
            kind.fetch = wrap(kind.fetch)
        yield


class _Carried:
    """A batch on its way from a worker, with its recipe; where it arrives it is the batch alone."""

    def __init__(self, batch: Any, recipe: Recipe) -> None:
        self._parts = batch, recipe

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, Recipe]]:
        return _unpacked, self._parts


_arrived: OrderedDict[str, Recipe] = OrderedDict()
"""The recipes of batches that have come from workers, by digest, until the batch is given to the loop."""


def _unpacked(batch: Any, recipe: Recipe) -> Any:
    announce(recipe)
    return batch


def announce(recipe: Recipe) -> None:
    """A batch with this digest is about to be given to the loop."""
    assert recipe.digest is not None
    _arrived[recipe.digest] = recipe
    while len(_arrived) > _ARRIVED:
        _arrived.popitem(last=False)


# -- the generators of a dataset ---------------------------------------------------------------------------------------


def own_generators(fetcher: Any) -> dict[str, rng.Generator]:
    """The random generators that a fetcher's dataset, or what collates its samples, holds itself, by path."""
    found: dict[str, rng.Generator] = {}
    seen: set[int] = set()
    queue: deque[tuple[str, Any]] = deque([("dataset", fetcher.dataset), ("collate_fn", fetcher.collate_fn)])
    while queue and len(seen) < _MAX_OBJECTS:
        path, value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, rng.GENERATOR_TYPES):
            found[path] = value
        else:
            queue.extend((f"{path}{step}", part) for step, part in _parts(value))
    return found


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object may use when it is called or asked for an item."""
    if isinstance(value, _BARE):
        return
    fields = getattr(value, "__dict__", None)
    named = {f".{name}": part for name, part in fields.items()} if isinstance(fields, dict) else {}
    for name, part in [*_items(value), *_bound(value), *named.items()]:
        if not isinstance(part, _BARE):
            yield name, part


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and len(value) <= _MAX_ITEMS:
        return [(f"[{key!r}]", part) for key, part in value.items() if isinstance(key, str)]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", part) for i, part in enumerate(value[:_MAX_ITEMS])]
    return []


def _bound(value: Any) -> list[tuple[str, Any]]:
    """What a function brings along."""
    if isinstance(value, types.MethodType):
        return [(".__self__", value.__self__)]
    if isinstance(value, functools.partial):
        return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    cells = value.__closure__ or () if isinstance(value, types.FunctionType) else ()
    return [(f"<{i}>", cell.cell_contents) for i, cell in enumerate(cells) if cell != types.CellType()]


# -- making again ------------------------------------------------------------------------------------------------------


def again(iterator: Any, recipe: Recipe) -> tuple[Any, str | None]:
    """Make the batch of `recipe` from the dataset of a DataLoader's iterator; return it, and why it is not the recorded one, if so.

    The generators are afterwards as the fetch left them, where this process made the batch; else as they were before.
    """
    fetcher = getattr(iterator, "_dataset_fetcher", None) or _DatasetKind.create_fetcher(
        iterator._dataset_kind, iterator._dataset, iterator._auto_collation, iterator._collate_fn, iterator._drop_last
    )
    with contextlib.ExitStack() as stack:
        if recipe.worker is not None:
            stack.enter_context(_as_worker(recipe.worker, fetcher.dataset))
        rng.restore_some(recipe.random)
        here = own_generators(fetcher)
        for path, state in recipe.own.items():
            if path in here:
                rng.put_generator_state(here[path], state)
        batch = fetcher.fetch(recipe.index)
    if digest(batch) == recipe.digest:
        return batch, None
    return batch, "the dataset gives another batch than the recorded one for the same indices and randomness"


@contextlib.contextmanager
def _as_worker(worker: tuple[int, int, int], dataset: Any) -> Iterator[None]:
    """What a worker process has: one thread, its number and seed, and randomness of its own."""
    number, count, seed = worker
    before, threads, info = rng.capture_state(), torch.get_num_threads(), torch_worker._worker_info
    torch_worker._worker_info = torch_worker.WorkerInfo(id=number, num_workers=count, seed=seed, dataset=dataset)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch_worker._worker_info = info
        rng.restore_state(before)
