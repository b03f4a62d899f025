"""What the demo's trace shows: one hindsight function, and the images that cause the most trouble (S4.9).

Room: apps. Reads traces through their public face, writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from analysis import forces
from analysis.metrics import hardest_samples
from analysis.similarity import off_diagonal_mean
from analysis.trajectories import alive

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from tracer import Trace

WEIGHT = "encoder.weight"


class Step(Protocol):
    """What `findings` asks of a step: state before and after it, and its captures."""

    state: Mapping[str, Any]
    next_state: Mapping[str, Any]
    captures: Mapping[str, Any]


def findings(step: Step) -> dict[str, float]:
    """A researcher's table, one row a step: a hindsight metric for any trace of the demo's script with BCL."""
    weight, seen, targets = step.state[WEIGHT], step.captures, step.captures["bcl/som_targets"]
    som = forces.som_delta(weight, targets, seen["bcl/som_rate"])
    both = forces.compare(weight, step.next_state[WEIGHT], som, seen["bcl/grad_masked"])
    alike = {"cosine_of_weights": off_diagonal_mean(weight), "cosine_of_targets": off_diagonal_mean(targets)}
    ratios = {"ratio_by_masked_gradient": both.ratio_by_masked_gradient, "ratio_by_movement": both.ratio_by_movement}
    return {"alive": alive(seen["bcl/win_rate"]), **alike, **ratios, "fight": both.agreement.fight}


@dataclass(frozen=True)
class StoredStep:
    """A step as it is stored: a `Step` for `findings` where states and captures were recorded."""

    state: Mapping[str, Any]
    next_state: Mapping[str, Any]
    captures: Mapping[str, Any]


def stored_step(trace: Trace, k: int) -> StoredStep:
    """Step k of a trace, with those captures that it has."""
    captures = {key: series[k] for key, series in trace.captures.items() if k in series}
    return StoredStep(trace.state(k), trace.state(k + 1), captures)


@dataclass(frozen=True)
class Image:
    """One image of the data: its mean loss, how often it was seen, and where it was seen last."""

    mean_loss: float
    seen: int
    step: int
    position: int
    label: int | None


def hardest_images(trace: Trace, steps: Iterable[int] | None = None, *, count: int = 10) -> list[Image]:
    """Which images cause the most trouble (S4.9), from the recorded loss per sample: the worst `count`, worst first.

    An image is known by its content, so it is the same one in every epoch. `steps` default to all that have the losses.
    """
    series = trace.captures["batch/loss_per_sample"]
    numbers: dict[bytes, int] = {}
    ids: list[int] = []
    losses: list[float] = []
    last: dict[int, tuple[int, int, int | None]] = {}
    for k in series.steps if steps is None else steps:
        images, labels = _images_and_labels(trace.batch(int(k)))
        for position, (image, loss) in enumerate(zip(images, np.asarray(series[int(k)]), strict=False)):
            number = numbers.setdefault(image.tobytes(), len(numbers))
            ids.append(number)
            losses.append(float(loss))
            last[number] = (int(k), position, None if labels is None else int(labels[position]))
    worst, means, seen = hardest_samples(ids, losses)
    return [
        Image(float(mean), int(times), *last[int(number)])
        for number, mean, times in zip(worst[:count], means[:count], seen[:count], strict=True)
    ]


def _images_and_labels(batch: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The images of a (images, labels) batch or of a batch that is images alone."""
    if isinstance(batch, list | tuple):
        labels = np.asarray(batch[1]) if len(batch) > 1 else None
        return np.asarray(batch[0]), labels if labels is not None and labels.ndim == 1 else None
    return np.asarray(batch), None
