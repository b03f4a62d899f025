"""Audits of what the model was fed and in which mode it was: repeated or sorted data, train/eval mistakes.

Room: analysis. Arrays in, findings out; each audit returns an empty list for what is healthy. A batch is a list of
sample ids (the trace's, one per distinct content).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from analysis.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_BATCHES = "select step, epoch, batch_index, batch_size, loss from steps order by step"


def repeated_batches(steps: ArrayLike, batches: Sequence[ArrayLike], *, run: int = 3) -> list[Finding]:
    """The very same batch `run` or more times in a row, in a run that has other batches too.

    A run of one batch only (full-batch training, or learning one batch by heart on purpose) says nothing.
    """
    at = np.asarray(steps)
    keys = [_key(batch) for batch in batches]
    if len(set(keys)) < 2:
        return []
    start = 0
    for i in range(1, len(keys) + 1):
        if i < len(keys) and keys[i] == keys[start]:
            continue
        if i - start >= run:
            evidence = f"steps {at[start]} to {at[i - 1]} all got the same batch, {i - start} times in a row."
            advice = (
                "The iterator is stuck: `next(iter(loader))` inside the loop, or a prefetcher that was not advanced."
            )
            return [Finding("repeated_batch", int(at[start]), evidence, _BATCHES, advice)]
        start = i
    return []


def repeated_samples(
    steps: ArrayLike, epochs: ArrayLike, batches: Sequence[ArrayLike], *, share: float = 0.05
) -> list[Finding]:
    """An epoch that offers samples again which it had already offered, in a run whose other epochs do not.

    That is a run resumed in mid-epoch that began the epoch anew. Sampling with replacement repeats in every epoch,
    which says nothing, and so do identical samples in the data. More than `share` of the epoch's samples must be
    repeats beyond what the median epoch has; 3 epochs are needed to know what is usual.
    """
    at, epoch = np.asarray(steps), np.asarray(epochs)
    numbers = np.unique(epoch)
    if len(numbers) < 3:
        return []
    shares = np.array([_repeats([batches[i] for i in np.flatnonzero(epoch == number)]) for number in numbers])
    usual = float(np.median(shares))
    odd = np.flatnonzero(shares > usual + share)
    if not odd.size:
        return []
    number = numbers[odd[0]]
    step = int(at[np.flatnonzero(epoch == number)[0]])
    evidence = f"{shares[odd[0]]:.0%} of the samples of epoch {number:g} were offered twice; {usual:.0%} is usual here."
    advice = (
        "A resumed run began this epoch again: save and restore the sampler's position with the checkpoint."
        " Right where this epoch alone was drawn with replacement."
    )
    return [Finding("repeated_samples", step, evidence, _BATCHES, advice)]


def same_order(steps: ArrayLike, epochs: ArrayLike, batches: Sequence[ArrayLike], *, least: int = 4) -> list[Finding]:
    """Every complete epoch offers the same batches in the same order: the data are not shuffled.

    2 epochs of `least` or more batches are needed. Right for a series whose order matters, so this is the one audit
    that is not called on its own: `sorted_labels` is what shows that the order does harm.
    """
    at, epoch = np.asarray(steps), np.asarray(epochs)
    orders = [[_key(batches[i]) for i in np.flatnonzero(epoch == number)] for number in np.unique(epoch)]
    full = [order for order in orders if len(order) == max(map(len, orders))]
    if len(full) < 2 or len(full[0]) < least or len(set(full[0])) < 2 or any(order != full[0] for order in full):
        return []
    evidence = f"all {len(full)} epochs offer the same {len(full[0])} batches in the same order."
    advice = "Pass shuffle=True to the DataLoader, unless the order of the data matters."
    return [Finding("same_order", int(at[0]), evidence, _BATCHES, advice)]


def sorted_labels(steps: ArrayLike, labels: Sequence[ArrayLike], *, share: float = 0.5) -> list[Finding]:
    """Batches that hold far fewer classes than chance gives: data sorted by class and not shuffled.

    Integer labels per batch. For each batch the number of distinct classes is divided by what drawing that many labels
    from the whole run's would give; the median under `share` is a finding. 4 batches, 3 classes and batches of at least
    4 are needed.
    """
    drawn = [np.ravel(np.asarray(batch)) for batch in labels]
    drawn = [batch for batch in drawn if len(batch) >= 4]
    if len(drawn) < 4:
        return []
    classes, counts = np.unique(np.concatenate(drawn), return_counts=True)
    # As many classes as samples are no classes: targets of a regression, or token ids.
    if len(classes) < 3 or len(classes) > counts.sum() / 4:
        return []
    frequency = counts / counts.sum()
    found = [len(np.unique(batch)) / (1 - (1 - frequency) ** len(batch)).sum() for batch in drawn]
    usual = float(np.median(found))
    if usual >= share:
        return []
    evidence = f"a batch holds {usual:.0%} of the classes that shuffled data would give it: the data come sorted."
    advice = "Pass shuffle=True to the DataLoader, or shuffle the dataset once."
    return [Finding("sorted_labels", int(np.asarray(steps)[0]), evidence, _BATCHES, advice)]


def eval_while_training(
    steps: ArrayLike, names: Sequence[str], training: ArrayLike, *, lasting: int = 10
) -> list[Finding]:
    """A model that trained in train mode and goes on in eval mode: `model.train()` was forgotten after validation.

    `training` [T, M] is each module's mode at each step. A finding needs all modules that ever were in train mode to be
    in eval mode for the last `lasting` steps at least. Some of them only (a frozen BatchNorm), or eval from the first
    step on, is a choice.
    """
    at, modes = np.asarray(steps), np.asarray(training, dtype=bool)
    ever = modes.any(axis=0)
    if not ever.any() or not modes[0][ever].all():
        return []
    on = modes[:, ever].any(axis=1)
    last = int(np.flatnonzero(on)[-1])
    if len(at) - 1 - last < lasting:
        return []
    step = int(at[last + 1])
    name = next(name for name, was in zip(names, ever, strict=True) if was)
    evidence = (
        f"all {int(ever.sum())} modules ({name or 'the model'} ...) are in eval mode from step {step} to the end."
    )
    query = f"select step, epoch, loss from steps where step between {max(step - 20, 0)} and {step + 20} order by step"
    advice = (
        "Call model.train() at the start of each epoch: dropout is off and BatchNorm uses old statistics since then."
    )
    return [Finding("eval_while_training", step, evidence, query, advice)]


def train_while_evaluating(steps: ArrayLike, counters: ArrayLike, left_loop: ArrayLike) -> list[Finding]:
    """BatchNorm that counts batches between steps: validation ran in train mode and moved the running statistics.

    `counters` [T] is a BatchNorm's `num_batches_tracked` at the *start* of each step, `left_loop` [T] whether the loop
    was left after that step. Counts per step are usually one number; a finding needs the count after every step that
    left the loop (2 or more of them) to be greater than the greatest of all others.
    """
    at, left = np.asarray(steps), np.asarray(left_loop, dtype=bool)[:-1]
    counted = np.diff(np.asarray(counters, dtype=np.int64))
    inside, between = counted[~left], counted[left]
    if len(between) < 2 or not inside.size or not (between > inside.max()).all():
        return []
    step = int(at[np.flatnonzero(left)[0]])
    extra = int(between[0] - inside.max())
    evidence = f"after step {step} BatchNorm counted {extra} batches that no step has, and so after every epoch."
    advice = "Call model.eval() before validation: its data leak into the running statistics."
    return [Finding("train_while_evaluating", step, evidence, _BATCHES, advice)]


def _key(batch: ArrayLike) -> bytes:
    return np.ascontiguousarray(batch, dtype=np.int64).tobytes()


def _repeats(batches: Sequence[ArrayLike]) -> float:
    counts = Counter(_all(batches).tolist())
    total = sum(counts.values())
    return (total - len(counts)) / total if total else 0.0


def _all(batches: Sequence[ArrayLike]) -> NDArray[np.int64]:
    return np.concatenate([np.ravel(np.asarray(batch, dtype=np.int64)) for batch in batches])
