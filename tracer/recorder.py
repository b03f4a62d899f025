"""The recorder: one session of a trace, from its first fact to its last.

Life cycle, as one can observe it: (1) the directory and trace.json exist, the session is `running`, nothing trained yet; (2) tail/
has the session's file, steps are readable; (3) the file ends with `close`, the session has its status; (4) segments and
index.duckdb are there, tail/ is empty. A process killed anywhere leaves one of these, or a torn last record that readers ignore.

Room: tracer. May touch: the directory of its trace; torch's hooks (through `hooks`); SIGTERM while it records.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer import (
    active,
    beside,
    environment,
    files,
    frames,
    hooks,
    making,
    manifest,
    origin,
    process,
    program,
    rng,
    stdin,
    variables,
)
from tracer.errands import Errands
from tracer.errors import ProgramError, TraceError, UsageError, WriteError
from tracer.journal import Journal
from tracer.live import Live
from tracer.manifest import Manifest, Parent, Program, SessionFacts
from tracer.options import Options
from tracer.sealing import Sealer
from tracer.steps import StepRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

_log = logging.getLogger("rewind")


class Recorder:
    """Records what runs between `start` and `close` (or inside `with`) into the trace at `path`."""

    def __init__(
        self,
        path: str | Path,
        *,
        options: Options,
        program: Program,
        append: bool = False,
        at: int | None = None,
        overwrite: bool = False,
        parent: Parent | None = None,
        pause_at: int | None = None,
    ) -> None:
        """Nothing happens yet. `at`: where a further session begins if its first state is none of the recorded ones."""
        self.path = Path(path).absolute()  # the program may change its working directory
        self._pid = os.getpid()
        self.options = options
        self._program = program
        self._append = append
        self._at = at
        self._overwrite = overwrite
        self._parent = parent
        self._pause_at = pause_at
        self._live: Live | None = None
        self._stack = contextlib.ExitStack()
        self._errands = Errands()
        self._steps: StepRecorder | None = None
        self._journal: Journal | None = None
        self._sealer: Sealer | None = None
        self._facts: Manifest | None = None
        self._session = 0
        self._seed: dict[str, Any] | None = None
        self._lookups: variables.Lookups | None = None
        self._marks = True
        """Whether the trace is this user's own, and is marked so: a stranger's that goes on stays a stranger's."""
        self.trained = False
        """After `close`: whether anything was recorded."""

    @property
    def step(self) -> int:
        """The number of the step that is next, or open."""
        return self._steps.step if self._steps is not None else 0

    def start(self) -> Recorder:
        """Make the trace's directory and put the hooks on. Raise UsageError or WriteError; nothing is overwritten."""
        if active.listener() is not None:
            raise UsageError("this process is recording, or replaying, already: one at a time")
        self._facts = self._prepare()
        self._steps = StepRecorder(self._open_journal, self.options, self._session)
        self._stack.callback(self._steps.stop_watching)
        self._live = Live(self.path, self._steps, pause_at=self._pause_at, errands=self._errands)
        self._steps.live = self._live
        self._live.start()
        self._stack.enter_context(hooks.installed(self._steps.shield))
        active.set_listener(self._steps.shield)
        self._stack.callback(active.set_listener, None)
        if self.options.replayable:
            self._stack.enter_context(making.watched(self._steps.making))
            log = files.FileLog(self.path, self._session)
            self._stack.enter_context(files.watched(log))
            self._stack.enter_context(stdin.teed(log))
            self._lookups = variables.Lookups(self.path, self._session)
            self._stack.enter_context(variables.watched(self._lookups))
        self._stack.enter_context(_on_sigterm(self))
        return self

    def _prepare(self) -> Manifest:
        existing = (self.path / "trace.json").exists()
        if existing and self._append:
            facts = manifest.read(self.path)
            self._marks = origin.is_ours(facts)
            self._session = max((s.session for s in facts.sessions), default=-1) + 1
            from tracer.trace import open_trace  # noqa: PLC0415  the reading side, needed for a further session only

            with open_trace(self.path) as trace:
                self.options.sample_counts.update(trace.sample_counts)
            self.options.detail = facts.detail
            self.options.weights = facts.weights
            self.options.weights_by_size = facts.weights and facts.detail != "full"
            return facts
        if existing and self._overwrite:
            shutil.rmtree(self.path)
        elif self.path.exists() and (existing or not self.path.is_dir() or any(self.path.iterdir())):
            hint = "add --append for a further session" if existing else "choose another"
            raise UsageError(f"{self.path} exists already: nothing was overwritten; {hint}", path=self.path)
        try:
            (self.path / "tail").mkdir(parents=True)
        except OSError as error:
            raise WriteError(f"{self.path} cannot be made: {error}", path=self.path) from None
        facts = Manifest(
            id=uuid.uuid4().hex,
            created=time.time(),
            detail=self.options.detail or "replay",
            weights=bool(self.options.weights),
            every=self.options.every,
            program=self._program,
            environment=self._environment(),
            parent=self._parent,
        )
        try:
            facts = self._marked(facts)
            facts.write(self.path)
        except OSError as error:
            raise WriteError(f"{self.path} cannot be begun: {error}", path=self.path) from None
        return facts

    def _environment(self) -> dict[str, Any]:
        """What the run's exactness depends on besides its code."""
        return environment.snapshot()

    def _open_journal(self, fingerprint: str) -> tuple[Journal, int]:
        """The first state is known: find the session's place, and begin it."""
        assert self._facts is not None
        step, row, note = self._place(fingerprint)
        session = SessionFacts(
            session=self._session,
            started=time.time(),
            first_step=step,
            first_row=row,
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_started=process.started(os.getpid()),
            note=note,
            argv=self._program.argv,
            seed=self._seed,
        )
        self._facts = replace(self._facts, weights=bool(self.options.weights))
        self._keep_sources()
        self._keep_lookups()
        session = replace(session, files=beside.begun(self.path, self._session))
        self._facts = self._facts.with_session(session)
        refusal = None
        try:
            self._note(session)
        except OSError as error:
            refusal = error
        self._journal = self._new_journal(row, step)
        self._journal.remade = self._remade
        if refusal is not None:
            self._journal.refused(refusal)
        self._sealer = Sealer(self.path, self._session)
        return self._journal, step

    def _new_journal(self, row: int, step: int) -> Journal:
        flight = self.options.flight
        if flight is None:
            return Journal(self.path, self._session, row, step, self._errands)
        from tracer.flight import FlightJournal  # noqa: PLC0415  few recordings have one

        return FlightJournal(self.path, self._session, row, step, self._errands, flight=flight)

    def _place(self, fingerprint: str) -> tuple[int, int, str | None]:
        assert self._facts is not None
        if not self._facts.sessions:
            return self._at or 0, 0, None
        from tracer import past  # noqa: PLC0415  as above
        from tracer.trace import open_trace  # noqa: PLC0415

        with open_trace(self.path) as trace:
            row = past.next_row(trace)
            found = past.find_state(trace, fingerprint)
            end = trace.steps
        if found is not None:
            return found, row, f"goes on from state {found}, which it equals"
        if self._at is not None:
            return self._at, row, f"begins at step {self._at}, as asked: its first state equals none of the recorded"
        note = f"its first state equals none of the recorded: it begins after the last step, {end - 1}"
        _log.warning("session %d: %s", self._session, note)
        return end, row, note

    def _note_end(self, session: SessionFacts, status: str) -> None:
        """The session is over: note when and how, and what its files are by now. Raise OSError."""
        own = beside.sums(self.path, self._session)
        self._note(replace(session, ended=time.time(), status=status, files=own))

    def _note(self, session: SessionFacts) -> None:
        """Write what is known of our session, leaving alone what others wrote of theirs. Raise OSError."""
        assert self._facts is not None
        own = self._facts = self._marked(self._facts.with_session(session))

        def change(now: Manifest) -> Manifest:
            # What another changed meanwhile of what would be run is not marked as ours.
            self._marks = self._marks and origin.is_ours(now)
            return self._marked(replace(now.with_session(session), program=own.program, weights=own.weights))

        try:
            self._facts = manifest.amend(self.path, change)
        except TraceError:
            own.write(self.path)  # it was removed, or spoilt: what we know is written again

    def _marked(self, facts: Manifest) -> Manifest:
        return origin.signed(facts) if self._marks else facts

    def _remade(self) -> None:
        """The trace's directory was removed under us: what is in memory is written again."""
        assert self._facts is not None
        self._keep_sources()
        self._keep_lookups()
        self._marked(self._facts).write(self.path)
        self.live.publish()
        if self._steps is not None:
            self._steps.forget_written()

    def _keep_sources(self) -> None:
        assert self._facts is not None
        sources = program.keep_sources(self._facts.program, self.path, self._facts.program.sources)
        self._facts = replace(self._facts, program=replace(self._facts.program, sources=sources))

    def _keep_lookups(self) -> None:
        if self._lookups is not None:
            self._lookups.write()

    def close(self, status: str = "finished") -> None:
        """End the session. Nothing that was recorded is lost, whatever the status."""
        if self._steps is None or self._facts is None or os.getpid() != self._pid:
            return  # What is forked from the program ends nothing.
        steps, self._steps = self._steps, None
        self.live.end()
        try:
            steps.shield.close(failed=status != "finished")
        finally:
            self._stack.close()
        self.trained = steps.trained or steps.shield.failure is not None
        if self._journal is None or not self.trained:
            self._discard()
            self._errands.close()
            return
        session = self._facts.session(self._session)
        assert session is not None
        self._keep_sources()
        self._keep_lookups()
        note = f"recording stopped: {steps.shield.failure}" if steps.shield.failure else session.note
        try:
            self._journal.close(status)
            self._note_end(replace(session, note=note), status)
            self.live.progress.write(status)
        except OSError as error:
            _log.error("the end of %s could not be written: %s", self.path, error)
        if self._sealer is not None:
            self._sealer.finish()
        self._errands.close()

    @property
    def live(self) -> Live:
        """What can be asked of the run while it goes on. Raise UsageError before the recording has begun."""
        if self._live is None:
            raise UsageError("nothing is being recorded yet")
        return self._live

    def pause(self) -> None:
        """Hold the run at the end of its current step: from another thread, or from the loop itself. # S4.1"""
        self.live.gate.pause(exactly=True)

    def resume(self) -> None:
        """Let the run go on."""
        self.live.gate.resume()

    def grant(self, steps: int = 1) -> None:
        """Let the paused run make `steps` steps more. Raise UsageError where it is not paused."""
        self.live.gate.grant(steps)

    def stop(self) -> None:
        """End the run at the end of its current step, as Ctrl-C does."""
        self.live.gate.stop()

    def _discard(self) -> None:
        """Nothing was trained: leave no trace of it (a trace that was there before stays as it was)."""
        if self._journal is not None:
            self._journal.close("finished")
        if self._sealer is not None:
            self._sealer.finish()
        if not self._append:
            shutil.rmtree(self.path, ignore_errors=True)

    def remember_start(self) -> None:
        """Keep the generators' state as the program's start found it: a replay starts from it, too."""
        self._seed = rng.portable_state()

    def __enter__(self) -> Recorder:
        self.remember_start()
        self.start()
        if self._program.kind == "block":
            frames.set_block(sys._getframe(1))
            self._stack.callback(frames.set_block, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(status_of(error))
        if error is None and not self.trained:
            raise ProgramError("nothing was trained while recording: no optimizer stepped")


def status_of(error: BaseException | None) -> str:
    """Return the session's status after `error`."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    return "terminated" if isinstance(error, KeyboardInterrupt) else "failed"


@contextlib.contextmanager
def _on_sigterm(recorder: Recorder) -> Iterator[None]:
    """End the session before SIGTERM ends the process; a handler that the program sets itself has its way."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not mine:
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        recorder.close("terminated")
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _this_program(depth: int) -> Program:
    """The program of a `with record(...)` block: the script that this process runs, if the block is in it."""
    caller = sys._getframe(depth).f_code.co_filename
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is not None and os.path.abspath(main) == os.path.abspath(caller):
        frames.add_program_folder(os.path.dirname(os.path.abspath(main)))
        return Program("script", os.path.abspath(main), None, tuple(sys.argv[1:]), os.getcwd())
    return Program("block", os.path.abspath(caller) if os.path.exists(caller) else None, None, (), os.getcwd())


class _Replaying:
    """Stands in for the recorder while the program that calls `record` is being replayed: nothing is written."""

    step = 0

    def __enter__(self) -> _Replaying:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self, status: str = "finished") -> None:
        """Nothing to end."""


def record(
    path: str | Path,
    *,
    every: int = 1,
    detail: str | None = None,
    weights: bool | None = None,
    keyframe_every: int | None = None,
    batch_bytes: int | None = None,
    slow_disk: str = "wait",
    append: bool = False,
    at: int | None = None,
    overwrite: bool = False,
    last: int | None = None,
    when: str | None = None,
) -> Recorder:
    """Record the training loop inside a `with` block into a new trace at `path`. # C1

    `every`: keep the first batch of an epoch and every N-th (# S0.1). `detail`: "metrics", "replay" (the default) or "full".
    `weights`: keep the weights at every step; the default is to do so for models of at most a million parameters.
    `batch_bytes`: batches that do not come again (augmented at random) are stored whole until they have taken so much; then how
    they were made. `slow_disk`: where writing takes more than a fifth of the time the training waits, and it is said; "drop": the
    weights and gradients of some steps are left out, which re-execution gives again.
    `keyframe_every`: a full state each so many steps; the default is about one a second. `append` adds a session to an
    existing trace. `last`: a flight recorder, of the last N steps alone all is kept, in memory, and written `when` a condition
    such as "isnan(loss)" comes to hold, or at an exception or SIGUSR1 (# B7).
    Raise UsageError if `path` exists, ProgramError at the end if nothing was trained.
    """
    if getattr(active.listener(), "replaying", False):
        return _Replaying()  # type: ignore[return-value]
    flight = None
    if last is not None or when is not None:
        from tracer.flight import flight_of  # noqa: PLC0415  few recordings have one

        flight = flight_of(last, when, detail)
    options = Options(
        every=every,
        detail=detail,
        weights=weights,
        keyframe_every=keyframe_every,
        batch_bytes=batch_bytes,
        flight=flight,
        slow_disk=slow_disk,
    )
    return Recorder(path, options=options, program=_this_program(2), append=append, at=at, overwrite=overwrite)


def attach(path: str | Path, **options: Any) -> Recorder:
    """Record from here to the end of the process, or to `close()`; options as in `record`."""
    recorder = record(path, **options)
    recorder.remember_start()
    recorder.start()
    atexit.register(recorder.close)
    return recorder
