"""An engine that records while it replays: from the place of a branch on, what runs is written as a new trace. # B4

Up to state k it is the engine that it inherits; then the changes are made and every point of a step goes to a
recorder, too. The batches are still the recorded ones, so a branch without a change is the parent, bit for bit; past
the parent's end they are the loader's own (see `replay.beyond`).
Room: replay. May touch: the program's state, at state k; the new trace.
"""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay import changes
from replay.beyond import Shadow
from replay.engine import NATIVE, Engine, StopProgram, Target
from tracer import frames, origin, rng, values, variables
from tracer.errors import RewindError, UsageError
from tracer.manifest import Parent, Program, source_name
from tracer.options import Options
from tracer.recorder import Recorder
from tracer.steps import StepRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from replay.channel import Message
    from tracer.trace import Trace


class BranchRecorder(Recorder):
    """Writes a branch. It puts no hooks on: the engine has them, and passes on what it sees."""

    def __init__(self, out: Path, parent: Trace, at: int, change: dict[str, Any], sources: dict[str, bytes]) -> None:
        """`sources` are the texts that ran, by absolute path."""
        facts = parent.manifest
        options = Options(every=facts.every, detail=facts.detail, weights=facts.weights)
        told = Parent(str(parent.path.resolve()), facts.id, at, change)
        session = facts.sessions[-1]
        program = Program(facts.program.kind, facts.program.path, facts.program.module, session.argv, facts.program.cwd)
        super().__init__(out, options=options, program=program, at=at, parent=told)
        self._sources = sources
        self._seed = session.seed
        self._parent_session = parent.path, session.session
        self._parent_env = facts.environment.get("env", {})
        self._marks = origin.is_ours(facts)

    def begin(self, boundary: Any) -> StepRecorder:
        """Make the directory; return what receives the points of a step. Raise UsageError, WriteError."""
        self._facts = self._prepare()
        variables.inherit(*self._parent_session, self.path)
        self._steps = StepRecorder(self._open_journal, self.options, self._session)
        self._stack.callback(self._steps.stop_watching)
        self._steps.boundary = boundary
        self._steps.making.want()
        return self._steps

    def _environment(self) -> dict[str, Any]:
        """With the parent's variables, where this process has them: others were set by what the program has imported."""
        own = super()._environment()
        if any(os.environ.get(name) != value for name, value in self._parent_env.items()):
            return own
        return {**own, "env": self._parent_env}

    def _keep_sources(self) -> None:
        assert self._facts is not None
        (self.path / "source").mkdir(exist_ok=True)
        kept = {place: source_name(place, text) for place, text in self._sources.items()}
        for place, name in kept.items():
            (self.path / name).write_bytes(self._sources[place])
        self._facts = replace(self._facts, program=replace(self._facts.program, sources=kept))

    def close(self, status: str = "finished") -> None:
        """End the branch; nothing that was recorded is lost."""
        if self._steps is None or self._facts is None:
            return
        steps, self._steps = self._steps, None
        try:
            steps.close(failed=status != "finished")
        finally:
            self._stack.close()
            self.trained = steps.trained
            self._put_away(status)

    def _put_away(self, status: str) -> None:
        assert self._facts is not None
        try:
            if self._journal is None or not self.trained:
                self._discard()
                return
            self._journal.close(status)
            self._note_end(self._facts.sessions[-1], status)
            if self._sealer is not None:
                self._sealer.finish()
        finally:
            self._errands.close()


class BranchingEngine(Engine):
    """Also obeys `branch`: change the program at the state where it is, and record what it does from there."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As Engine."""
        super().__init__(*args, **options)
        self._handlers |= {"branch": self._on_branch, "lines": self._on_lines, "beyond": self._on_beyond}
        self._recorder: BranchRecorder | None = None
        self._steps: StepRecorder | None = None
        self._lasting: dict[str, Any] = {}
        self._own_random = False
        self._shadow: Shadow | None = None
        self._entering = False
        self.moved_lines: dict[str, dict[int, int]] = {}

    def _on_branch(self, message: Message, parts: list[bytes]) -> None:
        assert self.at is not None
        try:
            stack = frames.user_frames(sys._getframe(1))
            self._change(message, parts, stack)
            sources = _texts(self.past.source, self.trace, message.get("script"))
            self._recorder = BranchRecorder(Path(message["out"]), self.trace, self.at, message["change"], sources)
            self._steps = self._recorder.begin(self.boundary)
            record = self.past.record(self.at)
            if record is not None and record["mode"] == "optimizer":
                # Here the step begins; a DataLoader's begins when its batch is handed over.
                self._steps._look(stack)
                self._steps._begin_optimizer_step()
        except (RewindError, OSError) as error:
            self._finish("failed", {"error": "branch", "detail": str(error)})
            raise StopProgram from None
        self._target = Target(self.at + int(message["steps"]), None, restored=True, kind="seek")

    def _change(self, message: Message, parts: list[bytes], stack: list[frames.UserFrame]) -> None:
        slots = self._look(stack)
        if self.registry is None:
            raise UsageError("the program has not run yet")
        self._lasting = changes.apply(message["set"], self.registry, slots)
        changes.replace_tensors(values.decode(message["tensors"], parts.__getitem__), self.registry)
        if message["seed"] is not None:
            changes.reseed(int(message["seed"]))
            self._own_random = True

    def _on_lines(self, message: Message, parts: list[bytes]) -> None:
        self.moved_lines = {f: {int(a): b for a, b in lines.items()} for f, lines in message["lines"].items()}
        self._channel.send({"ok": True})

    def _on_beyond(self, message: Message, parts: list[bytes]) -> None:
        self._shadow = Shadow()
        self._channel.send({"ok": True})

    def _moved(self, site: Any) -> Any:
        """A recorded place, in the lines of the script that runs."""
        if site is None or not self.moved_lines:
            return site
        return [[f, n, self.moved_lines.get(f, {}).get(line, line)] for f, n, line in site]

    def _fits(self, k: int, stack: list[frames.UserFrame], *, inner: bool) -> bool:
        if self._recorder is not None:
            return False  # the parent's later keyframes are not the branch's
        if self._shadow is not None and self._target is not None and self._target.restored:
            return False  # loops are left and entered by the program itself: its iterator is to be the recorded one
        if not self.moved_lines:
            return super()._fits(k, stack, inner=inner)
        tree, _ = self.past.keyframe(k)
        if tree["inner"] != inner or self._moved(tree["site"]) != frames.site_of(stack):
            return False
        return self._takes(k, stack)

    def _is_foreign(self, record: dict[str, Any], stack: list[frames.UserFrame]) -> bool:
        return super()._is_foreign({**record, "site": self._moved(record.get("site"))}, stack)

    # -- every point of a step goes to the recorder, too --------------------------------------------------------------

    def fetch(self, native: Callable[[], Any], *, extra: bool, same_iterator: bool) -> Any:
        """The recorded batch, noted as the branch's own."""

        def replayed() -> Any:
            return Engine.fetch(self, native, extra=extra, same_iterator=same_iterator)

        self._entering = not same_iterator
        if self._steps is not None:
            return self._steps.fetch(replayed, extra=extra, same_iterator=same_iterator)
        batch = replayed()
        if self._steps is not None:
            # The branch began inside this very fetch.
            return self._steps.fetch(lambda: batch, extra=extra, same_iterator=same_iterator)
        return batch

    def _enter(self, native: Callable[[], Any]) -> Any:
        before = rng.capture_state() if self._own_random else None
        if self._shadow is not None:
            record = self.past.record(self.at) if self.at is not None else None
            entry = self._entering and record is not None and record["left"]
            batch = self._shadow.fetch(native, super()._enter, entry=entry)
        else:
            batch = super()._enter(native)
        if before is not None:
            rng.restore_state(before)
        return batch

    def _follow(self, stack: list[frames.UserFrame], same_iterator: bool) -> str:
        if self._recorder is None or self.at is None or self.past.record(self.at) is not None:
            return super()._follow(stack, same_iterator)
        # All that was recorded has run: the loader's own batches are next, where they are the right ones.
        last = self.past.record(self.trace.steps - 1)
        assert last is not None
        aligned = not same_iterator or (self._shadow is not None and self._shadow.aligned)
        if last["mode"] == "optimizer" or (aligned and not last.get("extras")):
            return NATIVE
        self._finish("finished", {"at": self.at, "ended": f"past the recorded batches {self._unproven(last)}"})
        raise StopProgram

    def _unproven(self, last: dict[str, Any]) -> str:
        """Why nobody knows which batch would have come next."""
        if last.get("extras"):
            return "a second loader, which fed the steps too, cannot be shown to stand where it stood then"
        seeded = ": under another seed it began this epoch in another order" if self._own_random else ""
        return f"the loader cannot be shown to stand where it stood then{seeded}"

    def begin(self, batch: Any, *, left: bool, iterator: Any) -> None:
        """A step begins on trial."""
        super().begin(batch, left=left, iterator=iterator)
        if self._steps is not None:
            self._steps.begin(batch, left=left, iterator=iterator)

    def discard(self) -> None:
        """It was none."""
        super().discard()
        if self._steps is not None:
            self._steps.discard()

    def backward(self, losses: tuple[Any, ...]) -> None:
        """A backward pass has run."""
        super().backward(losses)
        if self._steps is not None:
            self._steps.backward(losses)

    def optimizer_pre(self, optimizer: torch.optim.Optimizer) -> None:
        """What the branch sets stays set: where the program has written over it, it is set again, and recorded so."""
        super().optimizer_pre(optimizer)
        if self._steps is not None:
            found = self._steps.optimizers
            self._steps.changes = {n: v for n, v in self._lasting.items() if changes.differs(found, n, v)}
            self._steps.optimizer_pre(optimizer)

    def end(self, *, mode: str, interrupted: bool = False) -> None:
        """Record the step that is over, then judge it; after the last one the program ends."""
        if self._steps is not None:
            self._steps.end(mode=mode, interrupted=interrupted)
            self._must_be_whole(self._steps.shield.failure)
        past_all = self._recorder is not None and self.at is not None and self.past.record(self.at) is None
        super().end(mode=mode, interrupted=interrupted)
        if past_all and self._target is not None and not interrupted:
            assert self.at is not None
            self.at += 1
            if self.at == self._target.k:
                self._reply_arrived()

    def _must_be_whole(self, failure: str | None) -> None:
        """What went wrong in what the recorder was told between the steps ends the branch: its trace would lack that."""
        if failure is not None:
            assert self._steps is not None
            self._steps.trained = False  # nothing of it is kept
            self._finish("failed", {"error": "branch", "detail": f"recording it failed: {failure}"})
            raise StopProgram

    def capture(self, key: str, value: Any, dims: Sequence[str] | None) -> None:
        """A capture of the program."""
        super().capture(key, value, dims)
        if self._steps is not None:
            self._steps.shield.capture(key, value, dims)

    def log(self, scalars: dict[str, Any]) -> None:
        """A scalar of the program."""
        if self._steps is not None:
            self._steps.shield.log(scalars)

    def _reply_arrived(self) -> None:
        if self._recorder is None:
            super()._reply_arrived()
            return
        self._finish("finished", {"at": self.at, "chain": self._judge.chain})
        raise StopProgram

    def ended(self, message: Message) -> None:
        """The program ended, or raised, before the branch was as long as was wished."""
        if self._recorder is None:
            super().ended(message)
            return
        raised = message["error"] == "raised"
        self._finish("failed" if raised else "finished", {"at": self.at, "ended": message["detail"]})

    def _finish(self, status: str, message: Message) -> None:
        recorder, self._recorder, self._steps = self._recorder, None, None
        try:
            if recorder is not None:
                recorder.close(status)
        except OSError as error:
            message = {"error": "branch", "detail": str(error)}
        self._channel.send(message)


def _texts(recorded: Callable[[str], bytes | None], trace: Trace, script: str | None) -> dict[str, bytes]:
    """The sources that the branch runs: the recorded ones, the program's own replaced by `script`."""
    found = {path: recorded(path) or b"" for path in trace.manifest.program.sources}
    if script is not None and trace.manifest.program.path is not None:
        found[trace.manifest.program.path] = Path(script).read_bytes()
    return found


def line_map(old: str, new: str) -> dict[int, int]:
    """Return where the lines of `old` are in `new`, for those that are unchanged; lines count from 1.

    >>> line_map("a\\nb\\nc", "a\\nx\\nb\\nc")
    {1: 1, 2: 3, 3: 4}
    """
    matcher = difflib.SequenceMatcher(a=old.splitlines(), b=new.splitlines(), autojunk=False)
    return {a + i + 1: b + i + 1 for a, b, n in matcher.get_matching_blocks() for i in range(n)}
