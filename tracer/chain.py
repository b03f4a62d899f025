"""The segments of a trace as one line of steps: which session and segment a step or state lies in.

A later session supersedes the steps from its first one on (S1.3). Sealed segments and open ones are taken together; a
refresh lists tails before commits, so that a segment sealed meanwhile is seen at least once.
Room: tracer. May touch: reads the trace it is given.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from tracer import known_tail, manifest, segments
from tracer.arrays import Arrays
from tracer.errors import MissingDataError, StepError
from tracer.open_segment import OpenSegment
from tracer.ranges import Ranges
from tracer.sealed_segment import SealedSegment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracer.segments import Key, Segment


class Chain:
    """All segments of one trace, in order."""

    def __init__(self, path: Path) -> None:
        """Read the facts and commits of the trace at `path`. Raise NotATraceError, FormatVersionError, DamageError."""
        self.path = path
        self.manifest = manifest.read(path)
        self.arrays = Arrays(path)
        self._lock = threading.Lock()
        self.sealed: dict[Key, SealedSegment] = {}
        self.open: dict[Key, OpenSegment] = {}
        self._all: list[Segment] = []
        self._sessions: list[tuple[int, int, list[Segment]]] = []
        self.first_step = 0
        """The first state of the trace; 0 but for a branch."""
        self.end = 0
        """One more than the last step."""
        self.cuts: dict[int, int] = {}
        """{session: step from which on it is superseded}, for the sessions of which something is."""
        self._states: Ranges | None = None
        self._arrange()
        self.refresh()

    def refresh(self) -> bool:
        """Take in what was written since; return whether there was anything."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        changed = self._refresh_tails()
        fresh = [key for key in segments.list_commits(self.path) if key not in self.sealed]
        if fresh:
            # First: whoever sees the new segments must not see old descriptions of their arrays.
            self.arrays.forget()
            self.sealed |= {key: SealedSegment(self.path, key, self.arrays) for key in fresh}
            self.sealed = dict(sorted(self.sealed.items()))
            self.open = {key: segment for key, segment in self.open.items() if key not in self.sealed}
            known_tail.forget_removed()
            changed = True
        facts = manifest.read(self.path)
        changed |= facts != self.manifest
        self.manifest = facts
        if changed:
            self._arrange()
        return changed

    def _refresh_tails(self) -> bool:
        changed = False
        for key, path in segments.list_tails(self.path).items():
            if key in self.sealed:
                continue
            if key not in self.open:
                try:
                    self.open[key] = OpenSegment(path, key)
                except FileNotFoundError:
                    continue  # sealed since it was listed: its commit is listed next
            changed |= self.open[key].refresh()
        return changed

    def _arrange(self) -> None:
        self._all = [segment for _, segment in sorted({**self.open, **self.sealed}.items())]
        by_session: dict[int, list[Segment]] = {}
        for segment in self._all:
            # A tail whose first record is torn or damaged does not say where it begins: it holds nothing, and has no place.
            if isinstance(segment, SealedSegment) or segment.begin:
                by_session.setdefault(segment.session, []).append(segment)
        starts = {s.session: s.first_step for s in self.manifest.sessions}
        for gone in (self._ended() | self._unreadable() & starts.keys()) - by_session.keys():
            by_session[gone] = []
        found = [(s, starts[s] if s in starts else own[0].first_step, own) for s, own in sorted(by_session.items())]
        # A session that passed no step has superseded nothing; where there is no other, its first state is the trace's.
        self._sessions = [each for each in found if self._has_superseded(*each)] or found[-1:]
        planned = self.manifest.sessions[0].first_step if self.manifest.sessions else 0
        self.first_step = min((first for _, first, _ in self._sessions), default=planned)
        self.end = self.first_step
        if self._sessions:
            _, first, own = self._sessions[-1]
            self.end = next((s.steps.runs[-1][1] + 1 for s in reversed(own) if s.steps.runs), first)
        self.cuts = {
            session: min(first for _, first, _ in self._sessions[i + 1 :])
            for i, (session, _, _) in enumerate(self._sessions[:-1])
        }
        self._states: Ranges | None = None

    def _ended(self) -> set[int]:
        """The sessions that ended by their own word: these have passed a step."""
        return {s.session for s in self.manifest.sessions if s.status not in ("running", "crashed")}

    def _unreadable(self) -> set[int]:
        """The sessions of which a tail is damaged where it begins: which steps they passed nobody knows."""
        return {tail.session for tail in self.open.values() if tail.damage is not None and not tail.begin}

    def _has_superseded(self, session: int, first: int, own: list[Segment]) -> bool:
        """Whether it passed a step. One that began a segment further on did, and one that ended, and whose end is not there:
        what it wrote is lost, not undone. Of what cannot be read that is assumed."""
        # A file is begun while the step before it is still to be written down: that one may be lost with who was ended then.
        finished = any(s.session == session and s.status == "finished" for s in self.manifest.sessions)
        reached = first + (not finished)
        # The first with a step and the last say it mostly: the commits between need not be read for it.
        if any(segment.steps.runs or segment.first_step > reached for segment in own) or session in self._unreadable():
            return True
        return session in self._ended() and not any(segment.closed for segment in own)

    def sample_rows(self, array: str, ids: np.ndarray) -> np.ndarray:
        """Sealed samples of `array` as bytes: uint8 [ids, bytes]. Raise MissingDataError, DamageError."""
        rows = self.arrays.get(array).rows(ids.astype(np.int64))
        return np.ascontiguousarray(rows).reshape(len(ids), -1).view(np.uint8)

    def __iter__(self) -> Iterator[Segment]:
        """All segments, superseded ones too, in the order in which they were written."""
        yield from self._all

    def session_of(self, step: int) -> int:
        """The session that step (or state) `step` belongs to. Raise StepError."""
        if not self.first_step <= step <= self.end:
            raise StepError(f"{self.path}: no step {step}; states are {self.first_step} to {self.end}", step=step)
        return next((s for s, first, _ in reversed(self._sessions) if first <= step), 0)

    def superseded_from(self, time: float) -> int | None:
        """The first step that a session put in place of what there was at `time`, None where none did."""
        started = {s.session: s.started for s in self.manifest.sessions}
        later = (first for s, first, _ in self._sessions if s and started.get(s, 0.0) > time)
        return min(later, default=None)

    def of_session(self, session: int) -> list[Segment]:
        """The segments of one session, in order."""
        return next((found for number, _, found in self._sessions if number == session), [])

    def with_step(self, step: int) -> Segment:
        """The segment that recorded `step`. Raise StepError, or MissingDataError where the step was lost."""
        if step >= self.end:
            raise StepError(f"{self.path}: no step {step}; there are {self.first_step} to {self.end - 1}", step=step)
        found = self._find(step, lambda segment: step in segment.steps)
        if found is None:
            raise MissingDataError(f"{self.path}: step {step} was lost when it was recorded", step=step)
        return found

    def with_state(self, state: int) -> Segment | None:
        """The segment that stores state `state`, None where none does. Raise StepError."""
        return self._find(state, lambda segment: state in segment.states)

    def with_keyframe(self, state: int) -> Segment | None:
        """The segment with a keyframe of `state`, if there is one. Raise StepError."""
        return self._find(state, lambda segment: state in segment.keyframes)

    def with_fingerprint(self, state: int) -> Segment | None:
        """The segment that knows the fingerprint of `state`, if one does. Raise StepError."""
        return self._find(state, lambda segment: state in segment.fingerprinted)

    def near(self, step: int) -> list[Segment]:
        """The segments of the step's session, those around `step` first."""
        found = self.of_session(self.session_of(step))
        place = bisect_right(found, step, key=lambda segment: segment.first_step) - 1
        order = sorted(range(len(found)), key=lambda i: (abs(i - place), -i))
        return [found[i] for i in order]

    def _find(self, step: int, has: Callable[[Segment], bool]) -> Segment | None:
        found = self.of_session(self.session_of(step))
        place = bisect_right(found, step, key=lambda segment: segment.first_step) - 1
        # A state lies with the step before it: at a border, in the segment before; the newest one wins.
        for i in (place + 1, place, place - 1, place - 2):
            if 0 <= i < len(found) and has(found[i]):
                return found[i]
        return None

    def keyframes(self) -> list[int]:
        """The states of which there are keyframes, ascending, without superseded ones."""
        cuts = self.cuts
        found = set()
        for session, _, own in self._sessions:
            end = cuts.get(session)
            found |= {k for segment in own for k in segment.keyframes if end is None or k < end}
        return sorted(found)

    def stored_states(self) -> Ranges:
        """The states whose weights are stored, without superseded ones."""
        if self._states is None:
            self._states = self.numbers(lambda segment: segment.states)
        return self._states

    def recorded_steps(self) -> Ranges:
        """The steps that were recorded, without superseded ones."""
        return self.numbers(lambda segment: segment.steps)

    def numbers(self, of: Callable[[Segment], Ranges]) -> Ranges:
        """The numbers that `of` gives for each segment, without superseded ones."""
        cuts = self.cuts
        runs: list[tuple[int, int]] = []
        for session, _, own in self._sessions:
            end = cuts.get(session)
            for first, last in (run for segment in own for run in of(segment).runs):
                last = last if end is None else min(last, end - 1)
                if first <= last:
                    runs.append((first, last))
        return Ranges.merged(runs)
