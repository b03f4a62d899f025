"""What a loop fetched for a step: the driving loader's batch, other loaders' batches, and the batches of trials that were no steps.

A trial is a fetch after which nothing was trained. If its iterator is one that also drives steps (a batch that the loop skips), what
the loop did with it may matter, so a replay hands it out again; of other iterators only the number is kept (a validation loader is
iterated natively at replay).
Room: tracer. May touch: nothing of the program but the batches it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tracer import rng
from tracer.batches import BatchEncoder, Draft, EncodedBatch, NewSamples, batch_size
from tracer.sections import Section, add_ids, encode_recipe, encode_rng
from tracer.writing import MOST_OF_DISK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.making import Making, Recipe

WHOLE_BYTES = 256 << 20
"""So much of batches that do not come again is stored whole, to be looked at; then how they were made."""
Site = list[list[Any]] | None


class Fetched(NamedTuple):
    """One batch (None: the iterator was at its end), and the generators' state after the fetch if it moved them."""

    batch: EncodedBatch | None
    rng: dict[str, Any] | None

    def described(self, sections: list[Section], prefix: str) -> dict[str, Any]:
        """Return its JSON; its bytes become sections whose names begin with `prefix`."""
        if self.batch is None:
            return {"stop": True, "rng": encode_rng(sections, self.rng, prefix)}
        add_ids(sections, self.batch, prefix)
        sizes = list(map(len, self.batch.inline))
        fields = {"batch": self.batch.node, "inline": sizes}
        recipe = self.batch.recipe
        if recipe is not None:
            fields["made"] = encode_recipe(sections, recipe, prefix)
        return {**fields, "rng": None if self.rng is None else encode_rng(sections, self.rng, prefix)}


class Taken(NamedTuple):
    """What one step fetched."""

    left: bool
    own: Fetched | None
    extras: list[Fetched]
    trials: list[tuple[int, Site, Fetched]]
    site: Site
    serial: int
    trained: int | None

    def header(self, sections: list[Section]) -> dict[str, Any]:
        """Return the fields of the step's record, the bytes as sections."""
        if self.own is None:
            fields = {"left": self.left, "batch": None, "inline": [], "rng": None, "discarded": 0}
            # Fetched by the loop that drove the steps before, which was then at its end: this step is trained on them.
            ahead = [fetched for s, _, fetched in self.trials if s == self.serial == self.trained]
            if ahead:
                fields["skipped"] = [f.described(sections, f"s{i}.") for i, f in enumerate(ahead)]
            return fields
        fields = {"left": self.left, **self.own.described(sections, "")}
        if not self.extras and not self.trials:  # nearly always
            fields["discarded"] = 0
            return fields
        if self.extras:
            fields["extras"] = [x.described(sections, f"x{i}.") for i, x in enumerate(self.extras)]
        fields["discarded"] = sum(
            site == self.site and serial not in (self.serial, self.trained) for serial, site, _ in self.trials
        )
        for name, serial in (("trailing", self.trained), ("skipped", self.serial)):
            own = [(site, fetched) for s, site, fetched in self.trials if s == serial]
            if own and (name == "skipped" or self.left):
                places = [{"site": site} if self.left and site != self.site else {} for site, _ in own]
                described = [f.described(sections, f"{name[0]}{i}.") for i, (_, f) in enumerate(own)]
                fields[name] = [one | place for one, place in zip(described, places, strict=True)]
        return fields


class Fetches:
    """Keeps what is fetched from the end of one step to the end of the next."""

    def __init__(
        self, encoder: BatchEncoder, *, keep: bool, making: Making, most: int | None, room: Callable[[], int]
    ) -> None:
        """`keep`: batches and randomness are recorded (detail replay or full).

        `making` knows how batches are made; that is kept in their stead from `most` bytes on. `room`: what is left of the disk.
        """
        self._encoder = encoder
        self._keep = keep
        self._making = making
        self._most, self._next_look, self._room = most, WHOLE_BYTES if most is None else most, room
        self._reader = rng.RngReader()
        self._moved: dict[str, Any] | None = None
        self._which: set[str] = set()
        self._now: Fetched | None = None
        self._extras: list[Fetched] = []
        self._trials: list[tuple[int, Site, Fetched]] = []
        self._serial = 0
        self._trained: int | None = None
        self._site: Site = None
        self.left = False
        """Whether the loop was left since the last step."""
        self.rng_hash: str | None = None
        self.size: int | None = None

    def fetch(self, native: Callable[[], Any], *, extra: bool) -> Any:
        """Fetch natively, noting what the fetch did to the generators."""
        if not self._keep:
            return native()
        before = self._reader.snapshot()
        self._making.asked = True
        try:
            batch = native()
        except StopIteration:
            if extra:
                self._extras.append(Fetched(None, self._after(before)))
            raise
        finally:
            self._making.asked = False
        moved = self._after(before)
        if extra:
            self._extras.append(Fetched(self._encoded(batch), moved))
        else:
            self._moved = moved
        return batch

    def _after(self, before: rng.Rng) -> dict[str, Any] | None:
        after = self._reader.snapshot()
        self.rng_hash = after.hash()
        if after == before:
            return None
        self._which = rng.moved(before, after)
        return rng.capture_state()

    def _encoded(self, batch: Any) -> EncodedBatch:
        steady = self._making.steady
        if self._encoder.whole >= self._next_look:
            self._next_look = self._encoder.whole + WHOLE_BYTES
            if self._most is not None or not steady or self._encoder.whole > MOST_OF_DISK * self._room():
                self._making.want()
        recipe = self._making.recipe(batch) if self._making.wanted else None
        return self._encoder.encode(batch, recipe, steady=steady)

    def _moves_as_much(self, recipe: Recipe | None) -> bool:
        """Whether making the batch again moves every generator that the fetch has moved."""
        return recipe is not None and recipe.worker is None and self._which <= recipe.random.keys()

    def random_now(self) -> str:
        """The hash of the generators' state."""
        return self._reader.snapshot().hash()

    def open(self, batch: Any, *, left: bool) -> None:
        """A step begins on trial; `left`: its iterator is a new one."""
        self._serial += left
        self.left = self.left or left
        if self._keep:
            encoded = self._encoded(batch)
            # Inside a loop a batch that is made again moves the generators as it did; what ran before one is not run again.
            again = not self.left and self._moves_as_much(encoded.recipe)
            self._now, self.size = Fetched(encoded, None if again else self._moved), encoded.size
        else:
            self.size = batch_size(batch)

    @property
    def has_batch(self) -> bool:
        """Whether a batch was recorded for the step that is open."""
        return self._now is not None

    def at(self, site: Site) -> None:
        """The place of the iterator that was fetched last."""
        self._site = site

    def discard(self) -> None:
        """The step on trial was none."""
        if self._now is not None:
            self._trials.append((self._serial, self._site, self._now))
        self._now = None
        self._extras.clear()

    def draft(self) -> Draft:
        """Return a batch to be filled piece by piece."""
        return Draft(self._encoder)

    def give(self, draft: Draft, size: int | None) -> None:
        """Without a DataLoader: the batch, of `size` samples, is what the model was given."""
        self._now, self.size = Fetched(draft.encoded(size), None), size

    def new_samples(self) -> list[NewSamples]:
        """The samples that were met for the first time since this was last asked."""
        return self._encoder.take_new()

    def forget_samples(self) -> None:
        """What was written is gone: every sample is a new one again, under a new number."""
        self._encoder.forget()

    def taken(self, *, by_loader: bool) -> Taken:
        """The step is over: return what it fetched, and begin anew."""
        taken = Taken(self.left, self._now, self._extras, self._trials, self._site, self._serial, self._trained)
        if by_loader:
            self._trained = self._serial
        self.left = False
        self._now = None
        self._trials, self._extras = [], []  # what was taken is written at the next step's start, and has its own
        return taken
