"""What one asks of a run, answered from what was recorded, each with the place in the app that shows it (S4.9).

An answer that the run has nothing for is left out. Nothing is re-executed.
Room: apps. Reads the run it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from analysis import forces
from analysis.questions import ask
from analysis.similarity import off_diagonal_mean
from tracer.errors import RewindError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from analysis.finding import Finding
    from apps.recorded import Recorded

HARDEST: Final = "loss_per_sample"
PICTURES: Final = 6
ALIKE: Final = 0.5
"""The mean cosine of features over which they are called alike."""
LEADS: Final = 0.9
"""SOM targets that are more alike than this make features alike (S4.9)."""


@dataclass(frozen=True)
class Answer:
    """`go` is what is chosen by who wants to see it; `pictures` are (caption, uint8 pixels or cosines -1..1).

    `parts` are counts that make a whole: (word, count, colour of the page).
    """

    question: str
    answer: str
    go: dict[str, Any]
    pictures: tuple[tuple[str, NDArray[Any]], ...] = ()
    parts: tuple[tuple[str, int, str], ...] = ()
    settings: dict[str, str] = field(default_factory=dict)


def answers(run: Recorded) -> list[Answer]:
    """All answers that the run has."""
    return [found for question in ALL for found in _asked(question, run)]


def quick_answers(run: Recorded) -> list[Answer]:
    """Those that the numbers of the steps give: what a run that goes on can be asked again and again."""
    return [found for question in QUICK for found in _asked(question, run)]


def _asked(question: Callable[[Recorded], Iterator[Answer]], run: Recorded) -> list[Answer]:
    try:
        return list(question(run))
    except RewindError:
        return []  # What was not recorded has no answer; a tab says why.


def short(value: float) -> str:
    """A number in four digits that matter."""
    if 1e4 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}" if np.isfinite(value) else "NaN" if np.isnan(value) else "∞" if value > 0 else "-∞"


def _loss(run: Recorded) -> Iterator[Answer]:
    if "loss" not in run.scalars:
        return
    # Of a branch its own steps: the others are its parent's.
    own = run.given("loss") & (run.scalars["step"] >= run.first)
    values, steps = run.scalars["loss"][own], run.scalars["step"][own]
    if not np.isfinite(values).any():
        return
    finite = np.flatnonzero(np.isfinite(values))
    low, high = (int(finite[f(values[finite])]) for f in (np.argmin, np.argmax))
    words = (
        f"From {short(values[finite[0]])} to {short(values[finite[-1]])}; "
        f"lowest {short(values[low])} at step {steps[low]:.0f}, highest {short(values[high])} at step {steps[high]:.0f}."
        if len(finite) > 1
        else f"{short(values[low])} at step {steps[low]:.0f}, the only one that has one."
    )
    bad = len(values) - len(finite)
    lost = f" It is not finite at {bad} step{'s' * (bad > 1)}." if bad else ""
    yield Answer("How did the loss go?", words + lost, {"tab": "metrics", "step": int(steps[low])})


def _trouble(run: Recorded) -> Iterator[Answer]:
    steps = run.trace.sql(ask("hardest_batches").removesuffix(" limit 10")).filter(f"step >= {run.first}")
    row = next(iter(steps.order("times_usual desc").limit(1).fetchall()), None)
    if row is None or row[3] is None or not np.isfinite(row[3]) or run.first == run.last:
        return  # One step alone stands out from nothing.
    k, loss, usual = int(row[0]), float(row[2]), float(row[3])
    words = f"Those of step {k}: its loss of {short(loss)} is {usual:.3g} times that of the steps around it."
    losses = run.per_sample(k).get(HARDEST)
    images = run.batch(k).images if losses is not None else None
    if images is None or losses is None or len(images) != len(losses):
        yield Answer(
            "Which batch causes the most trouble?", words.replace("Those", "That"), {"tab": "batch", "step": k}
        )
        return
    worst = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")[:PICTURES]
    pictures = tuple((short(losses[i]), images[i]) for i in worst)
    go, sort = {"tab": "batch", "step": k}, {"batch.sort": HARDEST}
    yield Answer("Which images cause the most trouble?", words, go, pictures, settings=sort)


def _deaths(run: Recorded) -> Iterator[Answer]:
    for layer in (one for one in run.layers if "win_rate" in run.metrics_of(one)):
        size = run.size_of(layer)
        dead = run.trace.sql(ask("all_deaths", layer=layer)).fetchall()
        go: dict[str, Any] = {"tab": "trajectories", "layer": layer}
        shown = {"trajectories.metric": "win_rate"}
        unknown = _unjudged(run, layer)
        alive = size - len(dead) - unknown
        parts = (("alive", alive, "green"), ("dead", len(dead), "red"))
        parts += (("unknown", unknown, "violet"),) if unknown else ()
        if not dead:
            words = (
                f"Nobody can tell: at the end the win rate of {unknown} of {size} features of {layer} is NaN."
                if unknown
                else f"No: at the end all {size} features of {layer} still win."
            )
            yield Answer("Do features die?", words, go, parts=parts, settings=shown)
            continue
        first, at = int(dead[0][0]), int(dead[0][1])
        those = f"{len(dead)} of {size} features of {layer} {'is' if len(dead) == 1 else 'are'} dead at the end"
        words = (
            f"{those}{', the first' if len(dead) > 1 else ''}: feature {first}, which wins under 1 % from step {at} on."
        )
        watched = tuple(int(feature) for feature, _ in dead[:6])
        go |= {"step": max(at, run.first), "feature": first, "watched": watched}
        yield Answer("When did features die?", words, go, parts=parts, settings=shown)


def _unjudged(run: Recorded, layer: str) -> int:
    """So many features of which it is not known whether they are alive: their last win rate is NaN."""
    last = "select max(step) from features where layer = $1 and win_rate is not null"
    query = f"select count(*) from features where layer = $1 and step = ({last}) and isnan(win_rate)"
    return int(run.trace.sql(query, [layer]).fetchall()[0][0])


def _likeness(run: Recorded) -> Iterator[Answer]:
    layer = next((one for one in run.layers if f"{one}/som_targets" in run.capture_keys), "")
    name = run.main_weight(layer)
    if name not in run.sources:
        return
    targets = f"{layer}/som_targets" if layer else ""
    states = run.trace.stored_states.array()
    inside = states[(states >= run.first) & (states <= run.last)]
    if not len(inside):
        return
    first, last = int(inside[0]), int(inside[-1])
    pair = [(k, run.cosine(name, k)[0]) for k in (first, last)]
    begun, ended = (off_diagonal_mean(run.source(name, k)) for k in (first, last))
    pictures = tuple((f"step {k}", np.float32(thinned(matrix))) for k, matrix in pair)
    go = {"tab": "matrices", "step": last, **({"layer": layer} if layer else {})}
    shown = {"matrices.left": name}
    alike = bool(ended > ALIKE)
    grown = f"the mean cosine between the rows of {name} went from {_cosine(begun)} to {_cosine(ended)}"
    if not targets:
        question, led, right = "Do features become alike?", 0.0, {"matrices.right": name, "matrices.at": str(first)}
    else:
        question = "Why do features converge?" if alike else "Do features converge?"
        led, right = run.cosine(targets, first)[1].mean, {"matrices.right": targets}
    yes = "" if question.startswith("Why") or np.isnan(ended) else "Yes: " if alike else "No: "
    lead = alike and led > LEADS > begun
    why = f" The SOM's targets were alike before ({led:.3f} at step {first}): they lead." if lead else ""
    yield Answer(
        question,
        f"{yes}{grown[:1].upper() if not yes else grown[:1]}{grown[1:]}.{why}",
        go,
        pictures,
        settings={**shown, **right},
    )


def thinned(matrix: NDArray[Any], most: int = 128) -> NDArray[Any]:
    """A matrix of at most `most` rows and columns: every other one, or fewer, of a larger one."""
    stride = -(-len(matrix) // most)
    return matrix[::stride, ::stride]


def _cosine(value: float) -> str:
    return "NaN" if np.isnan(value) else f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def _fighting(run: Recorded) -> Iterator[Answer]:
    for layer in (one for one in run.layers if f"{one}/som_targets" in run.capture_keys):
        states = run.trace.stored_states.array()
        moved_at = states[np.isin(states + 1, states) & (states >= run.first) & (states <= run.last)]
        if not len(moved_at):
            continue
        k = int(moved_at[-1])
        counts = forces.agreement(run.force_cosines(layer, k))
        moved, som, *_ = run.force_axes(layer, k, "movement")
        ratio = forces.force_ratio(som, moved)
        all_of = counts.agree + counts.fight + counts.neither
        stronger = f"the SOM moves them {ratio:.3g} times as far as the optimizer" if np.isfinite(ratio) else ""
        words = f"{counts.fight} of {all_of} features are pulled apart at step {k}; {stronger}.".replace("; .", ".")
        parts = (("agree", counts.agree, "green"), ("fight", counts.fight, "red"))
        go = {"tab": "forces", "step": k, "layer": layer}
        yield Answer("Is the gradient fighting the SOM?", words, go, parts=parts, settings={"forces.by": "movement"})


def proven_anew(known: Iterable[Answer], run: Recorded) -> tuple[Answer, ...]:
    """Answers given earlier, the one on verdicts as it is now."""
    fresh = {one.question: one for one in _asked(_exact, run)}
    return tuple(fresh.get(one.question, one) for one in known)


def _exact(run: Recorded) -> Iterator[Answer]:
    question = "Is the run proven, bit for bit?"
    if not run.replayable:
        yield Answer(question, "No: it was recorded without keyframes (detail metrics).", {"tab": "replay"})
        return
    known, go = run.proof, {"tab": "replay"}
    if known.untried == known.steps:
        words = "Not tried yet. A step is re-executed from the keyframe before it, every bit compared: all by `rewind verify`."
        yield Answer(question, words, go)
        return
    parts = (
        ("verified", known.verified, "green"),
        ("diverged", known.diverged, "red"),
        ("unverifiable", known.unverifiable, "yellow"),
        ("not tried", known.untried, "track"),
    )
    if known.first_diverged is not None:
        go["step"] = known.first_diverged
    words = f"{known.words[:1].upper()}{known.words[1:]}."
    yield Answer(question, words, go, parts=() if known.whole else parts)


QUICK: Final = (_loss, _exact)
ALL: Final = (_loss, _trouble, _likeness, _fighting, _deaths, _exact)


@dataclass(frozen=True)
class Standout:
    """What the doctor found: `lines` are facts of one kind that begin at one step, `query` shows the first of them."""

    kind: str
    step: int | None
    lines: tuple[str, ...]
    advice: str
    query: str


def standouts(findings: Iterable[Finding]) -> list[Standout]:
    """Findings, those of one kind that begin together and call for the same taken together."""
    groups: dict[tuple[str, int | None, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.kind, one.step, one.advice), []).append(one)
    return [
        Standout(kind.replace("_", " "), step, tuple(map(_sentence, own)), advice, own[0].query)
        for (kind, step, advice), own in groups.items()
    ]


def _sentence(one: Finding) -> str:
    """The evidence as it is read: a name of a metric keeps its letters."""
    return "The " + one.evidence[4:] if one.evidence.startswith("the ") else one.evidence


_DETAIL: Final = {
    "metrics": "metrics: numbers only",
    "replay": "replay: all that re-execution needs",
    "full": "full: weights and gradients of every step too",
}


def about(run: Recorded) -> list[tuple[str, str]]:
    """What was recorded, how much of it, and where: (name, words)."""
    known, info = run.trace.manifest, run.trace.info()
    program = known.program
    script = (
        program.path.rpartition("/")[2] if program.path else f"-m {program.module}" if program.module else "a function"
    )
    facts = [("program", " ".join([script, *program.argv])), ("recorded", _moment(known.created))]
    if known.parent is not None:
        changed = ", ".join(f"{name}={value}" for name, value in known.parent.change.items())
        whose = known.parent.trace.rstrip("/").rpartition("/")[2]
        facts.append(("branch", f"of {whose} at step {known.parent.at_step}" + (f": {changed}" if changed else "")))
    facts += _length(run)
    facts += [("detail", _DETAIL.get(known.detail, known.detail)), *_stored(run)]
    facts += [("verdicts", run.proof.words)] if run.replayable else []
    facts.append(("on disk", _size(info["bytes"])))
    made = known.environment
    machine = made if isinstance(made, dict) else vars(made)
    where = [machine.get("device_name") or f"CPU {machine.get('cpu_capability') or ''}".strip()]
    where += [f"torch {machine['torch']}"] if machine.get("torch") else []
    where += [f"Python {machine['python']}"] if machine.get("python") else []
    return [*facts, ("machine", ", ".join(where))]


def _moment(created: float) -> str:
    return datetime.fromtimestamp(created).strftime("%Y-%m-%d %H:%M")


def _length(run: Recorded) -> Iterator[tuple[str, str]]:
    if run.empty:
        return
    count = run.last - run.first + 1
    own = {name: values[run.scalars["step"] >= run.first] for name, values in run.scalars.items()}
    epochs = own.get("epoch")
    whole = 0 if epochs is None or np.isnan(epochs).all() else len(np.unique(epochs[np.isfinite(epochs)]))
    yield "steps", f"{count:,}" + (f" in {whole} epoch{'s' * (whole > 1)}" if whole else "")
    times = own.get("time")
    if times is not None and np.isfinite(times).sum() > 1:
        seconds = float(np.nanmax(times) - np.nanmin(times))
        yield "took", str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.1f} s"


def _stored(run: Recorded) -> Iterator[tuple[str, str]]:
    states = len(run.trace.stored_states.array())
    every = " (each)" if states == run.last - run.first + 2 else ""
    yield "weights", f"stored at {states:,} states{every}" if states else "re-executed where they are asked for"
    yield "keyframes", f"{len(run.trace.keyframes):,}"
    if run.capture_keys:
        yield "captures", f"{len(run.capture_keys)} a step"


def _size(count: int) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
