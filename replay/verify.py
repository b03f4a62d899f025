"""`rewind verify`: re-execute the steps of a trace, and prove them bit for bit or name what differs. # B2

What was found is kept in the trace (`tracer.proof`), also where the verification is broken off.
Room: replay. May touch: one session; the verdicts of its trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from replay.session import Session
from replay.verdict import Verdict
from tracer import proof
from tracer.errors import ReplayError, StepError, TraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tracer.trace import Trace


@dataclass
class Report:
    """The verdicts on the steps first <= k < end."""

    first: int
    end: int
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """How many steps have this verdict."""
        return sum(v.kind == kind for v in self.verdicts)

    @property
    def steps(self) -> int:
        """How many steps were judged."""
        return len(self.verdicts)

    @property
    def verified(self) -> bool:
        """Whether every step is proven."""
        return self.count("verified") == len(self.verdicts)

    @property
    def first_divergence(self) -> Verdict | None:
        """The first step that diverged."""
        return next((v for v in self.verdicts if v.kind == "diverged"), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `rewind verify --json` prints it."""
        first = self.first_divergence
        brief = None
        if first is not None:
            brief = {"step": first.step, "tensor": first.tensor, "max_ulp": first.max_ulp, "cause": first.cause}
        kinds = {kind: self.count(kind) for kind in ("verified", "diverged", "unverifiable")}
        return {"steps": len(self.verdicts), **kinds, "first_divergence": brief}


def verify(
    trace: Trace | str | Path,
    steps: tuple[int, int] | None = None,
    *,
    program: Callable[[], Any] | None = None,
    anyway: bool = False,
    current_source: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Re-execute the steps a <= k < b (all, if `steps` is None) in order, each from the state that the one before it left.

    After a step that diverged the next keyframe is put in place; the steps between are unverifiable. `progress(done, all)` is
    called after each step. Raise what Session and seek raise.
    """
    with Session(trace, program=program, anyway=anyway, current_source=current_source) as session:
        first, end = _range(session.trace, steps)
        report = Report(first, end)
        try:
            _run(session, report, progress)
        finally:
            if not current_source:
                report.notes += keep(session.trace, report.verdicts)
        if session.context.changed_sources and not current_source:
            names = ", ".join(Path(p).name for p in session.context.changed_sources)
            report.notes.append(f"changed since recording, replayed as recorded: {names}")
    return report


def keep(trace: Trace, verdicts: Iterable[Verdict], *, way: str = "verify") -> list[str]:
    """Keep verdicts in their trace; return why that could not be, where it could not: they are true all the same."""
    try:
        proof.keep(trace, ((v.step, v.kind) for v in verdicts), torch=str(torch.__version__), way=way)
    except (OSError, TraceError) as error:
        return [f"the verdicts could not be kept in the trace: {error}"]
    return []


def _run(session: Session, report: Report, progress: Callable[[int, int], None] | None) -> None:
    """Judge all steps of the report."""
    k, end = report.first, report.end
    while k < end:
        k = _from(session, k, end, report, progress)
        if _hopeless(report):
            _give_up(report, k, end, progress)
            break


def _range(trace: Trace, steps: tuple[int, int] | None) -> tuple[int, int]:
    first, end = steps if steps is not None else (trace.first_step, trace.steps)
    if not trace.first_step <= first <= end <= trace.steps:
        raise StepError(f"steps {first}:{end} are not all in the trace, which has {trace.first_step}:{trace.steps}")
    return first, end


def _from(session: Session, k: int, end: int, report: Report, progress: Callable[[int, int], None] | None) -> int:
    """Verify from state `k` until something diverges; return where to go on."""
    try:
        session.seek(k)
        for verdict in session.running(end - k):
            k = verdict.step + 1
            _add(report, verdict, end, progress)
            if verdict.kind != "verified":
                break
    except StepError:
        raise
    except ReplayError as error:
        reason = _without_step(str(error))
        _add(report, Verdict("unverifiable", k, cause=reason, detail=reason), end, progress)
        k += 1
    if k < end and not report.verdicts[-1].verified:
        return _skip(session, k, end, report, progress)
    return k


def _without_step(text: str) -> str:
    """An error's text without the number of the step, so that the same reason is seen to be the same."""
    return re.sub(r"(step|state) \d+", r"this \1", text)


def _hopeless(report: Report) -> bool:
    """Whether the program failed twice for the same reason: starting it again and again would prove nothing."""
    causes = [v.cause for v in report.verdicts if v.kind == "unverifiable" and v.cause]
    return len(causes) >= 2 and causes[-1] == causes[-2]


def _give_up(report: Report, k: int, end: int, progress: Callable[[int, int], None] | None) -> None:
    cause = report.verdicts[-1].cause or next(v.cause for v in reversed(report.verdicts) if v.cause)
    for lost in range(k, end):
        _add(report, Verdict("unverifiable", lost, cause=cause, detail=cause or ""), end, progress)


def _skip(session: Session, k: int, end: int, report: Report, progress: Callable[[int, int], None] | None) -> int:
    """The steps up to the next keyframe start from a state that was not reached."""
    anew = next((f for f in session.trace.keyframes if f >= k), end)
    why = f"starts from what step {k - 1} left, which is not the recorded state"
    for lost in range(k, min(anew, end)):
        _add(report, Verdict("unverifiable", lost, detail=why), end, progress)
    session.forget()
    return min(anew, end)


def _add(report: Report, verdict: Verdict, end: int, progress: Callable[[int, int], None] | None) -> None:
    report.verdicts.append(verdict)
    if progress is not None:
        progress(len(report.verdicts), end - report.first)
