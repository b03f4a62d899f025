"""Batches of which the trace has only the recipe: made again from the program's own dataset, and held against what was recorded.

Room: replay. May touch: the program's dataset and the random generators, as `tracer.making` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracer import making, rng
from tracer.making import Recipe

if TYPE_CHECKING:
    from tracer.past import Past


class Remade:
    """Makes batches for an engine. `problem`: why a batch of the step that is open is not the recorded one."""

    def __init__(self, past: Past) -> None:
        """By the recipes of `past`."""
        self._past = past
        self._ready: tuple[int, Recipe, Any, dict[str, Any]] | None = None
        self.problem: str | None = None

    def prepare(self, k: int, iterator: Any) -> None:
        """Make the batch of step `k` beforehand, if it has to be made; the generators stay as they are."""
        if self._ready is not None and self._ready[0] == k:
            return
        self._ready = None
        recipe = self._past.recipe(k) if iterator is not None and self._past.record(k) is not None else None
        if recipe is not None:
            before = rng.capture_state()
            batch = self.real(recipe, iterator)
            # What moves when it is given out: what it used, and nothing where a worker made it.
            after = (
                {} if recipe.worker else {name: s for name, s in rng.capture_state().items() if name in recipe.random}
            )
            self._ready = k, recipe, batch, after
            rng.restore_state(before)

    def fits(self, k: int, iterator: Any) -> bool:
        """Whether this iterator's dataset gives the batch of step `k`: of several loops at one place, it may be another's."""
        before, self.problem = self.problem, None
        self.prepare(k, iterator)
        fits = self.problem is None
        self._ready = self._ready if fits else None
        self.problem = before
        return fits

    def shown(self, k: int, wanted: list[tuple[int, int | None]], iterator: Any) -> tuple[list[Any], str | None]:
        """The batches of the fetches `wanted` (see `Trace.made_for`), and why one is not the recorded one; step `k` is next.

        The generators stay as they are; what is made is made once, and for the step itself kept.
        """
        kept, self.problem = self.problem, None
        before = rng.capture_state()
        batches = [self._shown(k, at, skipped, iterator) for at, skipped in wanted]
        rng.restore_state(before)
        found = self.problem or kept
        self.problem = kept or (self.problem if self._ready is not None and self._ready[0] == k else None)
        return batches, found

    def _shown(self, k: int, at: int, skipped: int | None, iterator: Any) -> Any:
        if skipped is not None:
            return self.real(self._past.fetched(at, "skipped", skipped)[0], iterator)
        recipe = self._past.recipe(at)
        if recipe is None:
            return self._past.batch(at)
        if at != k:
            return self.real(recipe, iterator)
        self.prepare(k, iterator)
        assert self._ready is not None
        return self._ready[2]

    def batch(self, k: int, iterator: Any) -> Any:
        """The batch of step `k`, which was not stored, made again; the generators are as the fetch left them."""
        if self._ready is None or self._ready[0] != k:
            return self.real(self._past.recipe(k), iterator)
        _, recipe, batch, after = self._ready
        self._ready = None
        making.announce(recipe)
        rng.restore_some(after)
        return batch

    def real(self, found: Any, iterator: Any) -> Any:
        """`found`, made if it is a recipe."""
        if not isinstance(found, Recipe):
            return found
        batch, problem = making.again(iterator, found)
        self.problem = self.problem or problem
        making.announce(found)
        return batch
