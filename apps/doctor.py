"""What is wrong with a recorded run: the audits of `analysis`, fed from its trace. # S1.4

Each audit gets what it asks for where the trace has it: weights at every step, else those of the keyframes. Nothing is
re-executed unless it is asked for; then steps spread over the run are, and the audits of updates and forces see them.
Of a branch the steps of its own are looked at.
Room: apps. Reads a trace through its public face; writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from analysis import audits, forces
from analysis.audits_series import ends
from analysis.similarity import off_diagonal_mean
from tracer.errors import MissingDataError
from tracer.packing import PackedLayout
from tracer.stored import unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from analysis.finding import Finding
    from tracer import Trace

SAMPLES = 48
"""So many states are looked at, spread over the run."""
WIDEST = 1024
BATCHES = 4096


def examine(trace: Trace, *, reexecute: bool = False) -> list[Finding]:
    """Return all findings on `trace`, those that begin first first; an empty list is a healthy run.

    `reexecute`: run the recorded program again for weights that were not stored. Raise what replaying raises.
    """
    visit = _Visit(trace, reexecute=reexecute)
    found = [finding for audit in _AUDITS for finding in audit(visit)]
    return sorted(found, key=lambda finding: -1 if finding.step is None else finding.step)


class _Visit:
    """What the audits ask of a trace, each read once."""

    def __init__(self, trace: Trace, *, reexecute: bool) -> None:
        self.trace = trace
        self._reexecute = reexecute
        names = ("step", "session", "epoch", "batch_size", "loss", "lr", "grad_norm", "time")
        own = f"where step >= {trace.first_step} order by step"
        rows = trace.sql(f"select {', '.join(names)} from steps {own}").fetchall()
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        self.columns = {name: _floats(values) for name, values in zip(names, columns, strict=True)}
        self.steps = self.columns["step"].astype(np.int64)

    def given(self, *names: str) -> bool:
        """Whether all of these columns have a value at every step (NaN is one)."""
        return len(self.steps) > 0 and all(not np.isnan(self.columns[n]).all() for n in names)

    def metrics(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(name, steps, values) of all that was recorded or logged."""
        query = "select name, step, value from metrics where source in ('recorded', 'logged') and step >= ?"
        groups: dict[str, list[tuple[int, float]]] = {}
        found = self.trace.sql(f"{query} order by name, step", [self.trace.first_step])
        for name, step, value in found.fetchall():
            groups.setdefault(name, []).append((step, value))
        for name, rows in groups.items():
            yield name, np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows], np.float64)

    def sampled(self, have: Callable[[int], bool]) -> list[int]:
        """Steps spread over the run of which `have` says that they are there."""
        if not len(self.steps):
            return []
        places = np.unique(np.linspace(0, len(self.steps) - 1, SAMPLES).astype(int))
        return [int(k) for k in self.steps[places] if have(int(k))]

    def states_around(self) -> Iterator[tuple[int, Any, Any]]:
        """(k, state k, state k+1) at sampled steps where both are stored, or may be re-executed."""
        for k in self.sampled(lambda k: self._reexecute or (self.trace.has_state(k) and self.trace.has_state(k + 1))):
            yield k, self.trace.state(k), self.trace.state(k + 1)

    def states(self, near: range | None = None) -> Iterator[tuple[int, Any]]:
        """(k, state k) as it is stored, or as a keyframe has it: spread over the run, or all `near` a step."""
        places = [*self.sampled(self.trace.has_state), self.trace.steps] if near is None else list(near)
        found = [k for k in places if self.trace.has_state(k)]
        if len(found) > 1 or not self.trace.keyframes:
            yield from ((k, self.trace.state(k)) for k in found)
            return
        frames = [k for k in self.trace.keyframes if near is None or k in near]
        for k in frames[:: max(1, len(frames) // SAMPLES)]:
            yield k, keyframe_state(self.trace, k)


def keyframe_state(trace: Trace, k: int) -> dict[str, Any]:
    """The tensors of keyframe `k`."""
    tree, read = trace.keyframe(k)
    return unpack(PackedLayout.of(tree["layout"]), np.frombuffer(read(0), np.uint8))


def _floats(values: Any) -> np.ndarray:
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)


def _series(visit: _Visit) -> Iterator[Finding]:
    loss = dict(zip(visit.steps.tolist(), visit.columns["loss"].tolist(), strict=True))
    for name, steps, values in visit.metrics():
        beside = np.array([loss.get(int(k), np.nan) for k in steps])
        falling = [] if name == "loss" else audits.zero_beside_falling_loss(name, steps, values, beside)
        yield from falling or audits.all_zero(name, steps, values)
        yield from audits.constant(name, steps, values)
        yield from audits.nonfinite(name, steps, values)


def _bookkeeping(visit: _Visit) -> Iterator[Finding]:
    yield from audits.gaps(visit.trace.recorded_steps.array())
    yield from audits.duplicates(visit.steps)
    yield from audits.clock_backwards(visit.steps, visit.columns["time"], visit.columns["session"])
    if visit.given("epoch", "loss", "batch_size"):
        named = ~np.isnan(visit.columns["epoch"])
        parts = (visit.columns[n][named] for n in ("loss", "batch_size"))
        yield from audits.means_disagree("loss", visit.columns["epoch"][named], *parts)


def _gradients(visit: _Visit) -> Iterator[Finding]:
    if visit.given("grad_norm"):
        yield from audits.exploding_gradient(visit.steps, visit.columns["grad_norm"])
        if visit.given("loss"):
            yield from audits.vanishing_gradient(visit.steps, visit.columns["grad_norm"], visit.columns["loss"])
    if visit.given("lr"):
        yield from audits.zero_learning_rate(visit.steps, visit.columns["lr"])


def _first_bad_tensor(visit: _Visit) -> Iterator[Finding]:
    """Which tensor had NaN first, looked for where a number first had it."""
    bad = [k for n in ("loss", "grad_norm") for k in visit.steps[~np.isfinite(visit.columns[n])] if visit.given(n)]
    if not bad:
        return
    first = int(min(bad))
    around = range(max(visit.trace.first_step, first - 3), min(visit.trace.steps, first + 2) + 1)
    stored = sum(visit.trace.has_state(k) for k in around) > 1
    states = visit.states(around if stored else None)
    arrays = ((k, {name: tensor.double().numpy() for name, tensor in s.items()}) for k, s in states)
    yield from audits.nonfinite_tensors(arrays)


def _what_moves(visit: _Visit) -> Iterator[Finding]:
    records = [visit.trace.record(k) for k in visit.trace.recorded_steps.array().tolist()]
    if not records:
        return
    still = audits.nothing_moves([r["step"] for r in records], [r["fingerprint"] for r in records])
    yield from still
    layouts = {(r["layout"], r["session"]) for r in records}
    if still or len(layouts) != 1 or not visit.trace.keyframes:
        return
    tree, _ = visit.trace.keyframe(visit.trace.keyframes[0])
    names = [entry["name"] for entry in tree["layout"]["entries"]]
    trained = {name for _, o in tree["optimizers"] for group in o["groups"] for name in group["params"]}
    params = {entry["name"] for entry in tree["layout"]["entries"] if entry["param"]}
    wanted = [
        name in (params & trained if trained else params) and name not in tree.get("frozen", ()) for name in names
    ]
    hashes = np.array([r["hashes"] for r in records], np.uint64)
    if hashes.shape[1] == len(names):
        yield from audits.frozen_parameters(names, hashes, wanted)


def _updates(visit: _Visit) -> Iterator[Finding]:
    moved: dict[str, list[tuple[int, float, float]]] = {}
    # A run whose loss falls is not told that its steps are of the wrong size.
    for k, before, after in () if _falls(visit) else visit.states_around():
        for name, weight in _matrices(before):
            moved.setdefault(name, []).append((k, float((after[name] - weight).norm()), float(weight.norm())))
    for name, rows in moved.items():
        yield from audits.update_ratio(name, *(np.array(column) for column in zip(*rows, strict=True)))


def _likeness(visit: _Visit) -> Iterator[Finding]:
    alike: dict[str, list[tuple[int, float]]] = {}
    for k, state in visit.states():
        for name, weight in _matrices(state):
            if weight.shape[0] <= WIDEST:
                alike.setdefault(name, []).append((k, off_diagonal_mean(weight)))
    for name, means in alike.items():
        yield from audits.features_converging(name, *(np.array(column) for column in zip(*means, strict=True)))


def _matrices(state: Any) -> Iterator[tuple[str, Any]]:
    """The weights of which rows are features."""
    for name, weight in state.items():
        if weight.dim() == 2 and weight.is_floating_point() and min(weight.shape) >= 2:
            yield name, weight


def _layers(visit: _Visit) -> Iterator[Finding]:
    """The gradients by layer, where they were kept."""
    names: list[str] = []
    rows = []
    for k in visit.sampled(lambda k: True):
        try:
            found = {n: float(g.norm()) for n, g in visit.trace.grads(k).items() if g.dim() > 1}
        except MissingDataError:
            return
        if names and list(found) != names:
            return
        names = list(found)
        rows.append(list(found.values()))
    if len(names) > 1:
        yield from audits.vanishing_layers(names, np.array(rows))


def _twins(visit: _Visit) -> Iterator[Finding]:
    """What the program logs under the name of what was recorded, and is something else."""
    for name, steps, values in visit.metrics():
        own = {"learning_rate": "lr"}.get(name, name.rpartition("/")[2])
        if own not in ("lr", "train_loss") or name in ("lr", "loss"):
            continue
        recorded = visit.columns["lr" if own == "lr" else "loss"][np.searchsorted(visit.steps, steps)]
        near = _near_lr(values, recorded) if own == "lr" else _near_loss(values, recorded)
        yield from audits.series_disagree((own if own == "lr" else "loss", name), steps, near, values, share=0.5)


def _near_lr(values: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """A schedule's rate may be logged before or after it steps."""
    return np.where(np.isclose(values, np.roll(recorded, -1), rtol=1e-3), values, recorded)


def _near_loss(values: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """A mean of the losses so far lies between them; a loss that is scaled by one number is the same loss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values / recorded
    if np.allclose(ratio, ratio[:1], rtol=1e-3):
        return values
    return np.clip(values, np.fmin.accumulate(recorded), np.fmax.accumulate(recorded))


def _falls(visit: _Visit) -> bool:
    """Also below where it began: steps that are too large raise it at once, and what falls from there is no progress."""
    loss = visit.columns["loss"]
    first, last = ends(loss)
    return last < 0.9 * min(first, float(loss[0]) if loss.size else first)


def _features(visit: _Visit) -> Iterator[Finding]:
    captures = visit.trace.captures
    for key in captures:
        layer, _, name = key.rpartition("/")
        if name == "win_rate" and layer:
            series = captures[key]
            yield from audits.dead_features(layer, series.steps, series.read())
        if name == "som_targets" and f"{layer}/grad_masked" in captures and f"{layer}/som_rate" in captures:
            yield from _forces(visit, layer)


def _forces(visit: _Visit, layer: str) -> Iterator[Finding]:
    """The two forces on the weight that the SOM targets have the shape of."""
    captures = visit.trace.captures
    targets, rates, masked = (captures[f"{layer}/{n}"] for n in ("som_targets", "som_rate", "grad_masked"))
    steps, cosines = [], []
    for k, before, after in visit.states_around():
        name = next((n for n, w in before.items() if tuple(w.shape) == tuple(targets.shape)), None)
        if name is None or k not in targets:
            continue
        som = forces.som_delta(before[name], targets[k], rates[k])
        steps.append(k)
        cosines.append(forces.compare(before[name], after[name], som, masked[k]).cosine)
    if steps:
        yield from audits.forces_fighting(layer, steps, np.array(cosines))


def _data(visit: _Visit) -> Iterator[Finding]:
    steps, epochs, ids = [], [], []
    for k, epoch in list(zip(visit.steps.tolist(), visit.columns["epoch"].tolist(), strict=True))[:BATCHES]:
        found = _sample_ids(visit.trace, k)
        if found is not None:
            steps.append(k)
            epochs.append(epoch)
            ids.append(found)
    if not steps:
        return
    yield from audits.repeated_batches(steps, ids)
    named = [i for i in _first_passes(visit.trace, steps, epochs) if not np.isnan(epochs[i])]
    if named:
        yield from audits.repeated_samples(*([column[i] for i in named] for column in (steps, epochs, ids)))
    at = list(visit.sampled(lambda k: k in set(steps)))
    labels = [(k, found) for k in at if (found := _labels(visit.trace, k)) is not None]
    if labels:
        yield from audits.sorted_labels([k for k, _ in labels], [found for _, found in labels])


def _first_passes(trace: Trace, steps: list[int], epochs: list[float]) -> Iterator[int]:
    """The places of those of `steps` that a loader fed in a session's first pass through the data of that number.

    A warm-up before `for epoch in range(3)` is a second pass of number 0, and repeats nothing.
    """
    passes: dict[tuple[int, float], int] = {}
    for i, k in enumerate(steps):
        record = trace.record(k)
        key = (record["session"], epochs[i])
        passes[key] = passes.get(key, -1) + (record["batch_index"] == 0 or key not in passes)
        if record["mode"] == "loader" and passes[key] == 0:
            yield i


def _sample_ids(trace: Trace, k: int) -> np.ndarray | None:
    """A number for each sample of a batch, by its content; small batches are stored without ids."""
    try:
        return np.frombuffer(trace.piece(k, "ids0"), np.uint32)
    except MissingDataError:
        pass
    try:
        batch = trace.stored_batch(k)
    except MissingDataError:
        return None
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not hasattr(first, "numpy") or first.dim() < 2:
        return None
    return np.array([hash(row.tobytes()) for row in first.contiguous().numpy()], np.int64)


def _labels(trace: Trace, k: int) -> np.ndarray | None:
    """The whole numbers of a batch of (inputs, labels)."""
    try:
        batch = trace.stored_batch(k)
    except MissingDataError:
        return None
    parts = batch if isinstance(batch, (list, tuple)) else ()
    for part in parts:
        if hasattr(part, "dtype") and str(part.dtype) == "torch.int64" and part.dim() == 1:
            return part.numpy()
    return None


def _modes(visit: _Visit) -> Iterator[Finding]:
    """Train and eval mode, as the keyframes have them."""
    steps, names, rows = [], [], []
    for k in visit.trace.keyframes:
        training = visit.trace.keyframe(k)[0]["training"]
        flags = {f"{path}[{i}]": flag for path, modules in training for i, flag in enumerate(modules)}
        if names and list(flags) != names:
            return
        names = list(flags)
        steps.append(k)
        rows.append(list(flags.values()))
    if len(steps) > 1 and names:
        yield from audits.eval_while_training(steps, names, np.array(rows), lasting=3)


def _batch_norm(visit: _Visit) -> Iterator[Finding]:
    """How many batches a BatchNorm had counted at the start of each step: told from the hashes of its counter."""
    trace = visit.trace
    records = [trace.record(k) for k in trace.recorded_steps.array().tolist()]
    if not records or len({(r["layout"], r["session"]) for r in records}) != 1 or not trace.keyframes:
        return
    names = [entry["name"] for entry in trace.keyframe(trace.keyframes[0])[0]["layout"]["entries"]]
    name = next((n for n in names if n.endswith("num_batches_tracked")), None)
    if name is None or len(records[0]["hashes"]) != len(names):
        return
    place = names.index(name)
    at_frames = {k: int(keyframe_state(trace, k)[name]) for k in trace.keyframes}
    most = max(at_frames.values()) + len(records) + 1
    counts = {xxhash.xxh3_64_intdigest(np.int64(n).tobytes()): n for n in range(most + 1)}
    after = [counts.get(r["hashes"][place]) for r in records]
    steps = [r["step"] for r in records]
    starts = [at_frames.get(k, n) for k, n in zip(steps[1:], after, strict=False)]
    left = [bool(r.get("left")) for r in records[1:]]
    if None not in starts and len(starts) > 2:
        # Of step k: what it began with, and whether the loop was left after it.
        yield from audits.train_while_evaluating(steps[1:], starts, [*left[1:], False])


_AUDITS = (
    *(_series, _twins, _bookkeeping, _gradients, _layers, _first_bad_tensor, _what_moves, _updates, _likeness),
    *(_features, _data, _modes, _batch_norm),
)
