"""Where two runs part: environment and source, then the first step that differs and what differs first in it. # B5

What is compared is what was recorded, in the order of cause: the state that a step starts from, its batch, the
randomness, the hyperparameters, the loss, the gradient norm, the state it leaves. Where weights were not stored those
of keyframes that both runs have are compared; the ones just after the parting are re-executed if that is asked for.
Room: replay. May touch: reads two traces; an engine for each, where it must.
"""

from __future__ import annotations

import difflib
import json
import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from replay.leaves import bits, leaves, same_leaf, same_values
from replay.verdict import max_ulp, same_float
from tracer import stored, values
from tracer.errors import MissingDataError, RewindError, StepError, TraceError
from tracer.past import Past
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_ENVIRONMENT_NOISE = ("argv0", "env")
# An engine's process is started with these, to be like the recorded one: what they say is compared as itself.
_SET_FOR_ENGINES = ("env.ATEN_CPU_CAPABILITY", "env.KMP_", "env.OMP_NUM_THREADS")
_NEAR = 32
"""So many steps from the parting on may be re-executed."""
_ROUNDING = 1e-6
"""The norm of a gradient, a sum in float32, is known as well as that."""
KINDS = ("start", "data", "random numbers", "hyperparameters", "loss", "gradient", "state")


@dataclass(frozen=True)
class TensorGap:
    """How far two tensors are apart: `elements` of `size` differ, by up to `max_ulp` units in the last place,
    `max_abs`."""

    name: str
    elements: int
    size: int
    max_ulp: int | None
    max_abs: float


@dataclass(frozen=True)
class Diff:
    """The difference of two runs over the steps first <= k < end that both have.

    `step` is the first that differs (None: none does), `kind` what differs first in it (one of KINDS), `detail` one
    line of evidence; `tensors` the tensors that differ after it, where both are known. `growth`: rows (step,
    |a - b| / |a| over all weights, loss of a, loss of b), the relative distance NaN where weights are not known.
    `note`: which generators nobody seeded, so that they say nothing; why weights could not be re-executed.
    """

    first: int
    end: int
    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    step: int | None = None
    kind: str | None = None
    detail: str = ""
    tensors: list[TensorGap] = field(default_factory=list)
    growth: list[tuple[int, float, float, float]] = field(default_factory=list)
    note: str = ""

    @property
    def same(self) -> bool:
        """Whether all steps that both have are the same, to the last bit."""
        return self.step is None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        growth = [dict(zip(("step", "distance", "loss_a", "loss_b"), row, strict=True)) for row in self.growth]
        return {**vars(self), "tensors": [vars(t) for t in self.tensors], "growth": growth}


def diff(a: Trace | str | Path, b: Trace | str | Path, *, rows: int = 12, reexecute: bool = False) -> Diff:
    """Compare two traces over the steps that both have. `rows`: how many of the growth table.

    `reexecute`: run the recorded programs for the weights just after the parting, where they were not stored. Raise
    StepError where they have no step in common.
    """
    with ExitStack() as stack:
        one, other = (t if isinstance(t, Trace) else stack.enter_context(open_trace(t)) for t in (a, b))
        first, end = max(one.first_step, other.first_step), min(one.steps, other.steps)
        if first >= end:
            raise StepError(f"{one.path} and {other.path} have no step in common")
        pair = _Pair(one, other, reexecute=reexecute)
        facts = (_environment(one, other), _sources(one, other))
        part = pair.first_difference(first, end)
        if part is None:
            same = "all steps that both have are the same, bit for bit"
            return Diff(first, end, *facts, detail=same, note=pair.notes())
        step, kind, detail = part
        after = step if kind == "start" else step + 1
        gaps, growth = pair.gaps(after), pair.growth(step, end, rows)
        return Diff(first, end, *facts, step, kind, detail, gaps, growth, pair.notes())


def _environment(a: Trace, b: Trace) -> dict[str, tuple[Any, Any]]:
    x, y = a.manifest.environment, b.manifest.environment
    variables = [{f"env.{name}": value for name, value in e.get("env", {}).items()} for e in (x, y)]
    x, y = {**x, **variables[0]}, {**y, **variables[1]}
    names = [n for n in {**x, **y} if n not in _ENVIRONMENT_NOISE and not n.startswith(_SET_FOR_ENGINES)]
    found = {n: (x.get(n), y.get(n)) for n in names if x.get(n) != y.get(n)}
    arguments = tuple(list(t.manifest.sessions[-1].argv) for t in (a, b))
    return found | ({"arguments": arguments} if arguments[0] != arguments[1] else {})


def _sources(a: Trace, b: Trace) -> dict[str, list[str]]:
    """{file name: the changed lines}: files are matched by path, else by their base name."""
    x, y = (_texts(t) for t in (a, b))
    result = {}
    for name in sorted({*x, *y}):
        old, new = x.get(name, ""), y.get(name, "")
        if old != new:
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
            result[name] = [line for line in lines if line[:3] not in ("---", "+++")]
    return result


def _texts(trace: Trace) -> dict[str, str]:
    past = Past(trace)
    found = {}
    for path in trace.manifest.program.sources:
        try:
            found[Path(path).name] = (past.source(path) or b"").decode(errors="replace")
        except TraceError:
            continue
    return found


class _Pair:
    """Two traces, step by step."""

    def __init__(self, a: Trace, b: Trace, *, reexecute: bool) -> None:
        self._traces = (a, b)
        self._pasts = (Past(a), Past(b))
        self._reexecute = reexecute
        self._parting = 0
        self._failure = ""
        self._alike = False
        self._aside: list[str] = []

    def first_difference(self, first: int, end: int) -> tuple[int, str, str] | None:
        """Return (step, kind, detail) of the first difference."""
        start = self._start(first)
        if start is not None:
            return first, "start", start
        for k in range(first, end):
            records = self._records(k)
            if records is None:
                continue
            for kind, test in self._tests():
                detail = test(k, *records)
                if detail is not None:
                    return k, kind, detail
        return None

    def _records(self, k: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            return self._traces[0].record(k), self._traces[1].record(k)
        except MissingDataError:
            return None

    def _start(self, k: int) -> str | None:
        x, y = (t.fingerprint(k) for t in self._traces)
        if x is None or y is None or x == y:
            return None
        return f"the runs start from different weights (fingerprints {x} and {y})"

    def _tests(self) -> Iterator[tuple[str, Callable[[int, dict[str, Any], dict[str, Any]], str | None]]]:
        yield "data", self._data
        yield "random numbers", self._random
        yield "hyperparameters", self._hyperparameters
        yield "loss", _number("loss")
        yield "gradient", self._gradient
        yield "state", self._state

    def _data(self, k: int, x: dict[str, Any], y: dict[str, Any]) -> str | None:
        if x.get("batch") is None or y.get("batch") is None:
            return None
        if "made" in x or "made" in y:
            # Stored is how they were made, and a digest of what came of it.
            made = [r["made"]["node"]["digest"] if "made" in r else None for r in (x, y)]
            return "the batch differs" if None not in made and made[0] != made[1] else None
        one, other = (list(leaves(t.stored_batch(k))) for t in self._traces)
        if len(one) != len(other):
            return f"the batches have {len(one)} and {len(other)} parts"
        for i, (p, q) in enumerate(zip(one, other, strict=True)):
            if not same_leaf(p, q):
                return f"part {i} of the batch differs{_which_rows(p, q)}"
        return None

    def _random(self, k: int, x: dict[str, Any], y: dict[str, Any]) -> str | None:
        if x.get("rng_hash") is None or y.get("rng_hash") is None or x["rng_hash"] == y["rng_hash"]:
            self._alike = self._alike or x.get("rng_hash") is not None
            return None
        differ = self._generators(k)
        if differ is not None and not self._alike and not {"torch", "cuda"} & set(differ):
            # Seeded by nobody, they differ in any two runs, and mean something only where the program draws from them:
            # then its data, its loss or its state differ as well.
            self._aside = self._aside or differ
        if self._aside and (differ is None or differ == self._aside):
            return None
        which = f" of {', '.join(differ)}" if differ else ""
        return f"the generators{which} differ at the step's start ({x['rng_hash']} and {y['rng_hash']})"

    def _generators(self, k: int) -> list[str] | None:
        """Which generators differ at the start of step `k`; None where no keyframe says it."""
        if any(k not in past.keyframes for past in self._pasts):
            return None
        one, other = (values.decode(tree["rng"], read) for tree, read in (p.keyframe(k) for p in self._pasts))
        return [name for name in {**one, **other} if not same_values(one.get(name), other.get(name))]

    def notes(self) -> str:
        """What a reader should know besides: which generators were not compared, why weights are not known."""
        aside = f"no seed was set for the generators of {' and '.join(self._aside)}, which differ from the start"
        return "; ".join([*([aside] if self._aside else []), *([self._failure] if self._failure else [])])

    def _hyperparameters(self, k: int, x: dict[str, Any], y: dict[str, Any]) -> str | None:
        if not same_float(x["lr"], y["lr"]):
            return f"learning rate {x['lr']!r} and {y['lr']!r}"
        if any(k not in t.keyframes for t in self._traces):
            return None
        one, other = (_options(past.keyframe(k)[0]) for past in self._pasts)
        for name in [n for n in one if n in other and one[n] != other[n]]:
            return f"{name}: {one[name]} and {other[name]}"
        return None

    def _gradient(self, k: int, x: dict[str, Any], y: dict[str, Any]) -> str | None:
        one, other = x["grad_norm"], y["grad_norm"]
        if one and other and math.isclose(one, other, rel_tol=_ROUNDING) and self._state(k, x, y) is None:
            return None  # One gradient, summed in another order: torch's depends on where in memory it lies.
        return _number("grad_norm")(k, x, y)

    def _state(self, k: int, x: dict[str, Any], y: dict[str, Any]) -> str | None:
        one, other = (dict(zip(p.names(k), r["hashes"], strict=True)) for p, r in zip(self._pasts, (x, y), strict=True))
        differ = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return (
            None
            if not differ
            else f"{differ[0]} differs first, {len(differ)} of {len({**one, **other})} tensors differ"
        )

    def gaps(self, k: int) -> list[TensorGap]:
        """The tensors of state `k` that differ, as far as they can be known."""
        self._parting = k
        states = self._states(k)
        if states is None:
            return []
        one, other = states
        found = [_gap(name, one[name], other[name]) for name in one if name in other]
        return [gap for gap in found if gap is not None]

    def _states(self, k: int) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]] | None:
        """State `k` of both: stored, or a keyframe's, or, near the parting, re-executed."""
        found = [self._state_of(i, k) for i in (0, 1)]
        return (found[0], found[1]) if found[0] is not None and found[1] is not None else None

    def _state_of(self, i: int, k: int) -> Mapping[str, torch.Tensor] | None:
        trace = self._traces[i]
        if trace.has_state(k):
            return trace.state(k)
        if k in trace.keyframes:
            _, read = self._pasts[i].keyframe(k)
            return stored.unpack(self._pasts[i].keyframe_layout(k), np.frombuffer(read(0), np.uint8))
        if not self._reexecute or not 0 <= k - self._parting <= _NEAR:
            return None
        try:
            return trace.state(k)
        except RewindError as error:  # a block of code, another machine: what is not known is left out
            self._reexecute, self._failure = False, f"the weights could not be re-executed: {error}"
            return None

    def growth(self, step: int, end: int, rows: int) -> list[tuple[int, float, float, float]]:
        """Rows at distances that double, where the weights are known if that is near."""
        offsets = {min(int(d), end - 1 - step) for d in np.geomspace(1, max(end - step, 1), rows - 1)} | {0}
        places = sorted({self._known_near(step + d, step, end) for d in offsets})
        found = [(k, self._records(k)) for k in places]
        return [
            (k, self._distance(k + 1), _float(r[0]["loss"]), _float(r[1]["loss"])) for k, r in found if r is not None
        ]

    def _known_near(self, k: int, step: int, end: int) -> int:
        if all(t.has_state(k + 1) for t in self._traces) or (self._reexecute and k + 1 - self._parting <= _NEAR):
            return k
        both = [f for f in self._common_keyframes if step < f <= end]
        return min(both, key=lambda f: abs(f - k - 1), default=k + 1) - 1

    @cached_property
    def _common_keyframes(self) -> list[int]:
        return sorted(set(self._traces[0].keyframes) & set(self._traces[1].keyframes))

    def _distance(self, k: int) -> float:
        states = self._states(k)
        if states is None:
            return math.nan
        one, other = states
        names = [n for n in one if n in other and one[n].is_floating_point() and one[n].shape == other[n].shape]
        apart = sum(float((one[n].double() - other[n].double()).square().sum()) for n in names)
        size = sum(float(one[n].double().square().sum()) for n in names)
        return math.sqrt(apart / size) if size else math.nan


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _number(name: str) -> Callable[[int, dict[str, Any], dict[str, Any]], str | None]:
    def test(k: int, x: dict[str, Any], y: dict[str, Any]) -> str | None:
        return None if same_float(x[name], y[name]) else f"{name} {x[name]!r} and {y[name]!r}"

    return test


def _which_rows(p: Any, q: Any) -> str:
    if not isinstance(p, torch.Tensor) or not isinstance(q, torch.Tensor) or p.shape != q.shape or not p.dim():
        return ""
    rows = [i for i in range(len(p)) if bits(p[i : i + 1]) != bits(q[i : i + 1])]
    a, b = (sorted(bits(t[i : i + 1]) for i in range(len(t))) for t in (p, q))
    order = ": the same samples in another order" if a == b else ""
    apart = "" if order else _apart(_gap("", p, q))
    return f" in {len(rows)} of {len(p)} rows, first row {rows[0]}{order}{apart}"


def _apart(gap: TensorGap | None) -> str:
    if gap is None or gap.max_ulp is None:
        return ""
    return f": {gap.elements} of {gap.size} elements, by up to {gap.max_ulp} ULP"


def _options(tree: dict[str, Any]) -> dict[str, str]:
    groups = [(path, i, g) for path, o in tree["optimizers"] for i, g in enumerate(o["groups"])]
    found: dict[str, str] = {}
    for path, i, group in groups:
        node = group["options"]
        pairs = node["v"] if isinstance(node, dict) and "v" in node else list(node.items())
        found |= {f"{path}[{i}].{key}": json.dumps(value) for key, value in pairs}
    return found


def _gap(name: str, p: torch.Tensor, q: torch.Tensor) -> TensorGap | None:
    if p.shape != q.shape or p.dtype != q.dtype:
        return TensorGap(name, p.numel(), p.numel(), None, math.inf)
    if bits(p) == bits(q):
        return None
    apart = p != q
    wide = (p.double() - q.double()).abs() if not p.is_complex() else (p - q).abs().double()
    return TensorGap(name, int(apart.sum()), p.numel(), max_ulp(p, q), float(wide.max()))
