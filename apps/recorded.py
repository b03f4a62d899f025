"""A recorded run as the app and the JSON API ask it: the arrays of one step, or of one feature over all steps.

What a trace lacks is MissingDataError with the reason in words: a view shows it, the API answers 404 with it.
Room: apps. May touch: reads the trace it is given, through its public face; keeps what was read in memory.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import forces
from analysis.similarity import cosine_matrix, off_diagonal_stats
from analysis.trajectories import died_at
from apps import normalize
from apps.pictures import Batch, plain, shown_batch
from apps.scalars import Scalars, numbers
from tracer.errors import MissingDataError, NameUnknownError, StepError
from tracer.trace import open_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.similarity import OffDiagonal
    from apps.normalize import Normalize
    from apps.pilot import Peeked
    from tracer import Trace

_LARGEST_MATRIX = 2048
_KEPT_STATES = 32
_KEPT_BATCHES = 16
_KEPT_ARRAYS = 8
_KEPT_PEEKS = 4
_KEPT_BYTES = 512 << 20
LEADING = ("win_rate", "grad_magnitude", "som_magnitude", "feature_novelty", "effective_win", "gradient_weight")


class Recorded(Scalars):
    """A trace with what a viewer asks of it. Steps are those of the trace: `first` to `last`, both included."""

    def __init__(self, trace: Trace, name: str = "") -> None:
        """`name` is what the run is called in the app and the API."""
        super().__init__(trace, name)
        self._again: dict[int, dict[str, Any]] = {}
        self._peeked: dict[int, Peeked] = {}
        self._batches: dict[int, Batch] = {}
        self._superseded = trace.superseded
        self._made: dict[tuple[Any, ...], NDArray[np.float64]] = {}

    def twin(self) -> Recorded:
        """The same run opened once more, for another thread."""
        twin = Recorded(open_trace(self.trace.path), self.name)
        twin._again, twin._peeked, twin.told = self._again, self._peeked, self.told
        return twin

    def refresh(self) -> None:
        """Take in what a live run has written since it was opened, or last refreshed."""
        self.trace.refresh()
        if self.trace.superseded != self._superseded:
            # Steps have been made anew by a session that was resumed before them.
            self._superseded = self.trace.superseded
            self._batches.clear()
            self._again.clear()
            self._peeked.clear()
            self.told.clear()
        for kind in type(self).__mro__:
            for name, made in vars(kind).items():
                if isinstance(made, cached_property):
                    self.__dict__.pop(name, None)
        self._made.clear()

    # -- the batch -----------------------------------------------------------------------------------------------------

    def batch(self, k: int) -> Batch:
        """The batch of step `k` as it can be shown. Raise MissingDataError, StepError, DamageError."""
        if k not in self._batches:
            self._batches[k] = shown_batch(self._batch(self.check(k)), self._normalize)
            while len(self._batches) > _KEPT_BATCHES:
                del self._batches[next(iter(self._batches))]
        return self._batches[k]

    def _batch(self, k: int) -> Any:
        try:
            return self.trace.stored_batch(k)
        except MissingDataError:
            known = self._peeked[k].batch if k in self._peeked else None
            if known is None:
                raise
            if isinstance(known, MissingDataError):
                raise known from None
            return known

    def makes_batch(self, k: int) -> bool:
        """Whether step `k`, run again, makes the batch that was not stored."""
        try:
            return bool(self.trace.made_for(self.check(k)))
        except (MissingDataError, StepError):
            return False

    @cached_property
    def _normalize(self) -> Normalize | None:
        return normalize.of_trace(self.trace.path)

    def per_sample(self, k: int) -> dict[str, NDArray[np.float64]]:
        """What was captured per sample of step `k`, [B] each, by the last part of its key."""
        found = {}
        for key in self.keys_of("sample", 1):
            if (value := self.capture_or_none(key, k)) is not None:
                found[key.rpartition("/")[2]] = value.astype(np.float64)
        return found

    def winners(self, k: int, sample: int, count: int = 5) -> list[tuple[int, float]]:
        """The features that score highest on one sample of step `k`, with their scores; none where there are no scores."""
        for key in self.keys_of("sample", 2):
            scores = self.capture_or_none(key, k)
            if scores is not None and 0 <= sample < len(scores):
                best = np.argsort(-np.nan_to_num(scores[sample], nan=-np.inf), kind="stable")[:count]
                return [(int(i), float(scores[sample, i])) for i in best if not np.isnan(scores[sample, i])]
        return []

    # -- captures ------------------------------------------------------------------------------------------------------

    @cached_property
    def _forms(self) -> dict[str, tuple[tuple[int, ...], tuple[str, ...] | None]]:
        found = {key: (series.shape, series.dims) for key, series in self.trace.captures.items()}
        for peeked in self._peeked.values():
            found |= {n: (tuple(t.shape), peeked.dims.get(n)) for n, t in peeked.captures.items() if n not in found}
        return found

    @property
    def capture_keys(self) -> list[str]:
        """All keys that were captured."""
        return list(self._forms)

    def keys_of(self, first: str, ndim: int) -> list[str]:
        """The captures of `ndim` dimensions whose first is `first` ("sample" or "feature")."""
        return [k for k, (shape, dims) in self._forms.items() if len(shape) == ndim and _leads(dims, ndim) == first]

    def capture(self, key: str, k: int) -> NDArray[Any]:
        """One capture at step `k`. Raise NameUnknownError, MissingDataError, StepError."""
        try:
            return np.asarray(plain(self.trace.captures[key][self.check(k)]))
        except (MissingDataError, NameUnknownError):
            peeked = self._peeked.get(k)
            if peeked is None or key not in peeked.captures:
                raise
            return np.asarray(plain(peeked.captures[key]))

    def capture_or_none(self, key: str, k: int) -> NDArray[Any] | None:
        """One capture at step `k`, or None where it was not given."""
        try:
            return self.capture(key, k)
        except (MissingDataError, NameUnknownError):
            return None

    # -- features ------------------------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> list[str]:
        """The layers that have a value per feature."""
        return sorted({key.rpartition("/")[0] for key in self.keys_of("feature", 1)})

    @property
    def rooms(self) -> list[str]:
        """Whose features can be looked at: the layers that were captured, and the weights, by name."""
        return [*self.layers, *self.matrices]

    def size_of(self, layer: str) -> int:
        """How many features `layer`, or a weight of that name, has; 0 where that is not known."""
        if layer in self.matrices:
            return self._shape(layer)[0]
        return next((s[0] for k, (s, _) in self._forms.items() if k.startswith(f"{layer}/") and len(s) == 1), 0)

    def metrics_of(self, layer: str) -> list[str]:
        """The per-feature quantities of `layer`, S4.4's first."""
        found = [k.rpartition("/")[2] for k in self.keys_of("feature", 1) if k.rpartition("/")[0] == layer]
        return [n for n in LEADING if n in found] + [n for n in found if n not in LEADING]

    def features(self, layer: str, k: int) -> dict[str, NDArray[np.float64]]:
        """Every per-feature quantity of `layer` at step `k`, [D] each. Raise MissingDataError where there is none."""
        if layer in self.matrices and layer not in self.layers:
            return self._of_weight(layer, self.check(k))
        values = {name: self.capture_or_none(f"{layer}/{name}", k) for name in self.metrics_of(layer)}
        found = {name: value.astype(np.float64) for name, value in values.items() if value is not None}
        if not found:
            reason = "captures nothing per feature" if not self.layers else f"captured nothing per feature at step {k}"
            raise MissingDataError(f"this run {reason}; tracer.capture('layer/win_rate', tensor) adds it", step=k)
        return found

    def _of_weight(self, name: str, k: int) -> dict[str, NDArray[np.float64]]:
        """What the rows of a weight tell by themselves, where nothing was captured of them."""
        before = self.weight(name, k)
        found = {"weight_norm": forces.row_norms(before)}
        if (after := self._weight_or_none(name, k + 1)) is not None:
            found["movement"] = forces.row_norms(after - before)
        with suppress(MissingDataError):
            found["gradient_norm"] = forces.row_norms(self._gradient(name, k))
        if (start := self._weight_or_none(name, self.first)) is not None:
            found["cosine_to_initial"] = forces.row_cosines(before, start)
        return found

    def _weight_or_none(self, name: str, k: int) -> NDArray[np.float64] | None:
        try:
            return self.weight(name, k)
        except MissingDataError:
            return None

    def trajectory(
        self, layer: str, metric: str, watched: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """One quantity of the watched features over all steps: (steps [T], values [T, W]). Raise NameUnknownError."""
        if metric not in self.metrics_of(layer):
            there = ", ".join(self.metrics_of(layer)) or "none"
            detail = f"no per-feature capture {layer}/{metric}; there are: {there}"
            raise NameUnknownError(detail, tensor=f"{layer}/{metric}")
        query = f'select step, feature, "{metric}" v from features where layer = ? and feature in (select unnest(?))'
        query += f' and "{metric}" is not null'  # What was not captured at a step is no NaN: the line goes on past it.
        rows = self.trace.sql(query + " order by step, feature", [layer, [int(f) for f in watched]]).fetchnumpy()
        return _pivot(rows["step"], rows["feature"], numbers(rows["v"]), watched)

    def deaths(self, layer: str, watched: Sequence[int]) -> list[int | None]:
        """The step at which each watched feature died (S4.9); None for the living, and where win_rate is not known."""
        if "win_rate" not in self.metrics_of(layer):
            return [None] * len(watched)
        steps, rates = self.trajectory(layer, "win_rate", watched)
        return died_at(rates, steps) if len(steps) else [None] * len(watched)

    # -- weights and forces --------------------------------------------------------------------------------------------

    @cached_property
    def matrices(self) -> list[str]:
        """The weights of the stored states that have rows, by name; of a re-executed one where none is stored."""
        states = self.trace.stored_states.array()
        if not len(states):
            again = next(iter(self._again.values()), {})
            return [n for n, t in again.items() if t.ndim >= 2 and t.is_floating_point() and t.numel()]
        entries = self.trace.layout(int(states[0])).entries
        return [
            e.name for e in entries if len(e.shape) >= 2 and e.dtype.startswith(("float", "bfloat")) and all(e.shape)
        ]

    def keep_rerun(self, k: int, verdict: str, states: dict[int, dict[str, Any]], told: Peeked) -> None:
        """Take in step `k` as it was re-executed. What diverged is no part of the run."""
        if verdict != "diverged":
            for at, state in states.items():
                self.keep(at, state)
            self.take(told)

    def keep(self, k: int, state: dict[str, Any]) -> None:
        """Take in a re-executed state: from now on its weights are there, as if they had been stored."""
        self._again[k] = state
        sizes = {k: sum(t.nbytes for t in known.values()) for k, known in self._again.items()}
        while len(self._again) > 2 and (len(self._again) > _KEPT_STATES or sum(sizes.values()) > _KEPT_BYTES):
            oldest = next(iter(self._again))
            del self._again[oldest], sizes[oldest]
        self._made.clear()
        for name in ("matrices", "sources"):
            self.__dict__.pop(name, None)

    def take(self, peeked: Peeked) -> None:
        """Take in what a paused process told of its last step: the views have it as if it had been stored."""
        self._peeked[peeked.step] = peeked
        while len(self._peeked) > _KEPT_PEEKS:
            del self._peeked[next(iter(self._peeked))]
        for k, weights in ((peeked.step, peeked.before), (peeked.step + 1, peeked.weights)):
            if weights:
                self.keep(k, weights)
        for name in ("_forms", "layers", "matrices", "sources"):
            self.__dict__.pop(name, None)
        self._made.clear()

    def took(self, k: int) -> bool:
        """Whether a paused process, or a re-execution, has told of step `k`."""
        return k in self._peeked

    def captured(self, k: int) -> list[dict[str, Any]]:
        """What was captured at step `k`: key, dtype, shape and dims each."""
        found = self.trace.record(k).get("captures", [])
        if found or k not in self._peeked:
            return found
        known = self._peeked[k]
        return [  # As it was captured: bfloat16 is shown as float32, but is none.
            {
                "key": key,
                "dtype": str(v.dtype).removeprefix("torch."),
                "shape": list(v.shape),
                "dims": known.dims.get(key),
            }
            for key, v in known.captures.items()
        ]

    @property
    def replayable(self) -> bool:
        """Whether the program can be run again from somewhere."""
        return self.trace.manifest.detail != "metrics" and bool(self.trace.keyframes)

    def weight_of(self, layer: str) -> str:
        """The weight [D, F] whose rows are the features of `layer`. Raise MissingDataError."""
        shape = next((s for k, (s, _) in self._forms.items() if k == f"{layer}/som_targets"), None)
        count = next((s[0] for k, (s, _) in self._forms.items() if k.startswith(f"{layer}/") and len(s) == 1), None)
        sizes = {name: self._shape(name) for name in self.matrices}
        for name, size in sizes.items():
            if size == shape or (shape is None and size[0] == count):
                return name
        raise MissingDataError(f"no stored weight has a row for each feature of {layer!r}")

    def _shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a weight: a convolution's row is all that makes one of its outputs."""
        states = self.trace.stored_states.array()
        if len(states):
            shape = tuple(self.trace.layout(int(states[0])).entry(name).shape)
        else:
            shape = tuple(next(iter(self._again.values()))[name].shape)
        return shape[0], math.prod(shape[1:])

    def has_weights(self, k: int) -> bool:
        """Whether the weights of state `k` are there, stored or re-executed."""
        return k in self._again or self.trace.has_state(k)

    def weight(self, name: str, k: int) -> NDArray[np.float64]:
        """One stored weight of state `k`, float64 [D, F], for reading only. Raise MissingDataError where it is not stored."""
        return self._once(("weight", name, k), lambda: self._read_weight(name, k))

    def _once(self, key: tuple[Any, ...], make: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """What `make` gives, made once for the few steps asked about last: the parts of one picture share it."""
        if key not in self._made:
            self._made[key] = make()
            while len(self._made) > _KEPT_ARRAYS:
                del self._made[next(iter(self._made))]
        return self._made[key]

    def _read_weight(self, name: str, k: int) -> NDArray[np.float64]:
        if k in self._again:
            return _rows(self._again[k][name])
        if not self.trace.has_state(k):
            raise MissingDataError(f"the weights of state {k} are not stored: the Replay tab re-executes them", step=k)
        return _rows(self.trace.state(k)[name])

    def som_movement(self, layer: str, k: int) -> NDArray[np.float64]:
        """What the SOM did to each feature in step `k`, [D, F]. Raise MissingDataError where it was not captured."""
        return self._once(("som", layer, k), lambda: self._som_movement(layer, k))

    def _som_movement(self, layer: str, k: int) -> NDArray[np.float64]:
        targets, rate = (self.capture_or_none(f"{layer}/{n}", k) for n in ("som_targets", "som_rate"))
        if targets is None or rate is None:
            raise MissingDataError(f"{layer or 'this run'} captures no SOM targets and rate at step {k}", step=k)
        return forces.som_delta(self.weight(self.weight_of(layer), k), targets, rate)

    def force_axes(self, layer: str, k: int, by: str) -> tuple[NDArray[np.float64], NDArray[np.float64], str, str]:
        """S4.5's scatter: gradient side [D], SOM side [D], and what each axis is. `by` is one of FORCES."""
        if by == "mask":
            names = ("grad_magnitude", "som_magnitude")
            sides = [self.capture(f"{layer}/{n}", k).astype(np.float64) for n in names]
            return (*sides, "sum over the batch of grad_mask", "sum over the batch of som_weight")
        if by == "plain":
            gradient, moved = self.plain_forces(layer, k)
            return (
                forces.row_norms(gradient),
                forces.row_norms(moved),
                "norm of the gradient",
                "norm of W after - before",
            )
        som = forces.row_norms(self.som_movement(layer, k))
        if by == "gradient":
            masked = self.capture(f"{layer}/grad_masked", k)
            return forces.row_norms(masked), som, "norm of the masked gradient", "norm of the SOM's movement"
        moved = forces.row_norms(self.optimizer_movement(layer, k))
        return moved, som, "norm of the optimizer's real movement", "norm of the SOM's movement"

    def optimizer_movement(self, layer: str, k: int) -> NDArray[np.float64]:
        """`grad_delta` of S4.5: W after - W before - SOM movement, [D, F]."""
        name = self.weight_of(layer)
        return forces.grad_delta(self.weight(name, k), self.weight(name, k + 1), self.som_movement(layer, k))

    def has_forces(self, layer: str) -> bool:
        """Whether two forces were captured, a SOM's beside the gradient's: else there is one, the optimizer's."""
        return {f"{layer}/som_targets", f"{layer}/som_rate"} <= set(
            self._forms
        ) or f"{layer}/som_magnitude" in self._forms

    def main_weight(self, layer: str) -> str:
        """The weight of `layer`, which may be one's name, or the first one stored. Raise MissingDataError."""
        if layer:
            return layer if layer in self.matrices else self.weight_of(layer)
        if not self.matrices:
            raise MissingDataError("no weights are stored: record with --detail full, or re-execute a step")
        return self.matrices[0]

    def plain_forces(self, layer: str, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gradient of the weight at step `k`, and how the weight moved, both [D, F]. Raise MissingDataError."""
        name = self.main_weight(layer)
        gradient = self._gradient(name, self.check(k))
        return gradient, self.weight(name, k + 1) - self.weight(name, k)

    def _gradient(self, name: str, k: int) -> NDArray[np.float64]:
        gradients = self._grads(k)
        if name not in gradients:
            raise MissingDataError(f"the gradient of {name} at step {k} was not recorded", step=k, tensor=name)
        return _rows(gradients[name])

    def _grads(self, k: int) -> dict[str, Any]:
        try:
            return self.trace.grads(k)
        except MissingDataError:
            if k not in self._peeked:
                raise
            return self._peeked[k].grads

    def force_detail(self, layer: str, k: int, feature: int) -> forces.ForceDetail:
        """The four pictures of one feature. Raise MissingDataError, NameUnknownError for an unknown feature."""
        name = self.weight_of(layer)
        before, after = self.weight(name, self.check(k)), self.weight(name, k + 1)
        try:
            return forces.detail(before, after, self.som_movement(layer, k), feature)
        except IndexError as error:
            raise NameUnknownError(str(error)) from None

    def force_cosines(self, layer: str, k: int) -> NDArray[np.float64]:
        """Cosine of the optimizer's and the SOM's movement per feature, [D]."""
        return forces.row_cosines(self.optimizer_movement(layer, k), self.som_movement(layer, k))

    # -- matrices ------------------------------------------------------------------------------------------------------

    @cached_property
    def sources(self) -> list[str]:
        """What a similarity matrix can be of: weights, captured [D, F] tensors, and the optimizer's movement."""
        small = [n for n in self.matrices if 2 <= self._shape(n)[0] <= _LARGEST_MATRIX]
        own = [k for k in self.keys_of("feature", 2) if 2 <= self._forms[k][0][0] <= _LARGEST_MATRIX]
        movement = [f"{layer}/grad_delta" for layer in self.layers if f"{layer}/som_targets" in self._forms and small]
        return [*small, *own, *movement]

    def source(self, name: str, k: int) -> NDArray[np.float64]:
        """The [D, F] array behind a matrix at step `k`. Raise NameUnknownError, MissingDataError."""
        if name not in self.sources:
            known = ", ".join(self.sources) or "none"
            raise NameUnknownError(f"no source {name!r}; there are: {known}", tensor=name)
        if name in self.matrices:
            return self.weight(name, self.check(k))
        if name in self._forms:
            return self.capture(name, k).astype(np.float64)
        return self.optimizer_movement(name.rpartition("/")[0], self.check(k))

    def cosine(self, name: str, k: int) -> tuple[NDArray[np.float64], OffDiagonal]:
        """The pairwise cosines [D, D] of a source at step `k`, and their figures off the diagonal."""
        matrix = cosine_matrix(self.source(name, k))
        return matrix, off_diagonal_stats(matrix)

    def each(self, name: str, steps: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """A source at each of `steps` that has it."""
        for k in steps:
            try:
                yield k, self.source(name, k)
            except MissingDataError:
                continue


FORCES = {
    "mask": "mask magnitude",
    "gradient": "gradient norm",
    "movement": "real weight movement",
    "plain": "gradient against movement, no SOM",
}


def _rows(tensor: Any) -> NDArray[np.float64]:
    array = np.asarray(plain(tensor), np.float64)
    return array.reshape(len(array), -1) if array.ndim > 2 else array


def _leads(dims: tuple[str, ...] | None, ndim: int) -> str:
    if dims:
        return "sample" if dims[0] in ("sample", "batch") else "feature" if dims[0] == "feature" else dims[0]
    return "feature" if ndim == 1 else "feature" if ndim == 2 else ""


def _pivot(
    steps: NDArray[Any], features: NDArray[Any], values: NDArray[np.float64], watched: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rows, place = np.unique(np.asarray(steps, np.int64), return_inverse=True)
    table = np.full((len(rows), len(watched)), np.nan)
    for column, feature in enumerate(watched):
        own = np.asarray(features) == feature
        table[place[own], column] = values[own]
    return rows, table
