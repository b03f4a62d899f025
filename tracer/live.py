"""What a recording gives while it goes on: progress, and a gate that other processes hold and open. # S3 S4.1

Room: tracer. May touch: status.json and the control channel of its trace; hyperparameters of a paused run, when asked.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tracer import hyperparameters, values
from tracer.control_server import Server
from tracer.errors import MissingDataError, UsageError
from tracer.fed import facts_of, leaves
from tracer.gate import HAND, Gate
from tracer.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tracer.errands import Errands

_HEARTBEAT = 2.0
_MOST_WAIT = 3600.0
_log = logging.getLogger("rewind")
Request = dict[str, Any]
KINDS = ("weights", "grads", "captures", "before")
"""What can be asked of a paused step by name; `before` are the weights that it started from, `weights` what it made of them."""
Described = tuple[dict[str, Any], Callable[[], bytes]]


class Run(Protocol):
    """What there is to ask of the recorder (`steps.StepRecorder`) while its thread waits."""

    step: int
    changes: dict[str, Any]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]: ...

    @property
    def tensors(self) -> dict[str, torch.Tensor]: ...

    @property
    def finished(self) -> Any:
        """The step that is over, while its record is looked at (`sections.OpenStep`), else None."""

    @property
    def whole(self) -> bool:
        """Whether all of the step that is over is kept, here or in the trace."""

    @property
    def failure(self) -> OSError | None:
        """Why the disk does not take what is recorded, while it does not."""

    def event(self, kind: str, detail: str, step: int | None = None) -> None: ...

    def driver(self) -> Any:
        """The DataLoader's iterator that drives the loop, if one does."""


class Live:
    """Ties a recording to those who watch and control it."""

    def __init__(self, path: Path, run: Run, *, pause_at: int | None = None, errands: Errands | None = None) -> None:
        """Nothing happens yet. `pause_at`: hold before this step; `errands` write status.json while the run goes on."""
        self._path = path
        self._run = run
        self._server: Server | None = None
        self._told = False
        self._beat = 0.0
        self.progress = Progress(path, errands=errands)
        self.gate = Gate(pause_at)
        self.gate.on_hold = self._holds
        self.gate.on_tick = self._tick
        self._verbs: dict[str, Callable[[Request, str], dict[str, Any]]] = {
            "ping": lambda request, client: {},
            "state": self._on_state,
            "pause": self._on_pause,
            "resume": self._on_resume,
            "step": self._on_step,
            "stop": self._on_stop,
            "set": self._on_set,
            "keys": self._on_keys,
        }

    def start(self) -> None:
        """Open the control channel; where the system refuses, the run goes on without."""
        try:
            self._server = Server(self._path, self)
        except (OSError, AttributeError) as error:
            _log.warning("no control channel, the run cannot be paused from outside: %s", error)

    def publish(self) -> None:
        """Say again where the control channel is: the trace's directory was removed, and made anew."""
        if self._server is not None:
            self._server.publish()

    def stepped(self, header: dict[str, Any]) -> float:
        """A step's record is written: note it, wait where asked, return the seconds waited. Raise Stopped."""
        if header["kind"] != "step":
            return 0.0
        self.progress.stepped(header, self._run.driver)
        seconds = self.gate.passing(int(header["step"]) + 1, whole=lambda: self._run.whole)
        if seconds:
            self._goes_on(seconds)
        return seconds

    def _holds(self) -> None:
        """The training thread is about to wait, under the gate's lock: how it goes on is said before it is seen to wait."""
        self._beat = time.monotonic()
        if not self._told:
            self._told = True
            self._say_how_to_go_on()
        self.progress.write("paused")

    def _say_how_to_go_on(self) -> None:
        self._run.event("paused", f"before step {self.gate.step}", self.gate.step - 1)
        if self.gate.by_hand:
            how = "`rewind resume %s` lets it go on, `rewind step %s` makes one step"
            _log.info(f"paused before step %d: {how}", self.gate.step, self._path, self._path)
        else:
            _log.info("paused before step %d, by the app", self.gate.step)

    def _tick(self) -> None:
        if time.monotonic() - self._beat > _HEARTBEAT:
            self._beat = time.monotonic()
            self.progress.write("paused")

    def _goes_on(self, seconds: float) -> None:
        self.progress.held(seconds)
        if self.gate.status == "running":
            self._told = False
            self.progress.write("running")

    def end(self) -> None:
        """The run is over: nobody is held, nobody can ask. May be called from a signal's handler."""
        self.gate.close()
        bar, self.progress.bar = self.progress.bar, None
        if bar is not None:
            bar.close()
        if self._server is not None:
            self._server.close()
            self._server = None

    # -- requests, in the clients' threads -----------------------------------------------------------------------------

    def answer(self, request: Request, client: str) -> tuple[dict[str, Any], bytes]:
        """Answer one request. Raise UsageError, NameUnknownError, MissingDataError."""
        if request["do"] == "peek":
            return self._on_batch() if request.get("what") == "batch" else self._peek(request)
        verb = self._verbs.get(request["do"])
        if verb is None:
            raise UsageError(f"no request {request['do']!r}; there are: {', '.join([*self._verbs, 'peek'])}")
        return verb(request, client), b""

    def gone(self, client: str) -> None:
        """A client's connection has ended, and its lease with it."""
        if self.gate.drop(client):
            _log.warning("the client that had paused the run is gone: the run goes on")
        elif self.gate.by_hand and self.gate.status == "paused" and not self._told:
            _log.info("paused by hand: `rewind resume %s` lets it go on", self._path)

    def state(self) -> dict[str, Any]:
        """Return what `Control.state` does."""
        return {
            "status": self.gate.status,
            "step": self.gate.step if self.gate.status == "paused" else self._run.step,
            "by_hand": self.gate.by_hand,
            "refused": None if self._run.failure is None else str(self._run.failure),
            "pid": os.getpid(),
            "hyperparameters": hyperparameters.listed(self._run.optimizers),
            "changes": dict(self._run.changes),
        }

    def _on_state(self, request: Request, client: str) -> dict[str, Any]:
        return {"state": self.state()}

    def _settled(self, wait: float) -> dict[str, Any]:
        self.gate.settle(wait)
        return {"state": self.state()}

    def _on_pause(self, request: Request, client: str) -> dict[str, Any]:
        wait = _wait_of(request)  # first: what is refused has not happened
        self.gate.pause(client if request.get("lease") else HAND)
        return self._settled(wait)

    def _on_resume(self, request: Request, client: str) -> dict[str, Any]:
        self.gate.resume()
        return {"state": self.state()}

    def _on_step(self, request: Request, client: str) -> dict[str, Any]:
        steps = request.get("steps", 1)
        if type(steps) is not int:
            raise UsageError(f"{steps!r} is no number of steps")
        wait = _wait_of(request)
        self.gate.grant(steps)
        return self._settled(wait)

    def _on_stop(self, request: Request, client: str) -> dict[str, Any]:
        self.gate.stop()
        return {"state": self.state()}

    def _on_set(self, request: Request, client: str) -> dict[str, Any]:
        self.set(request.get("changes"))
        return {"state": self.state()}

    def set(self, changes: Any) -> None:
        """Change hyperparameters of the paused run, as its next step's optimizer is about to step. Raise UsageError."""
        if not isinstance(changes, dict) or not changes:
            raise UsageError("no changes: give names and values, as in {'optimizer.lr': 0.01}")
        with self.gate.held():
            hyperparameters.check(self._run.optimizers, changes)
            self._run.changes.update(changes)

    # -- the paused step in full detail --------------------------------------------------------------------------------

    def _on_keys(self, request: Request, client: str) -> dict[str, Any]:
        with self.gate.held():
            known = {what: [facts for facts, _ in self._found(what)] for what in KINDS}
            return {"keys": {**known, "batch": self._batch_keys()}}

    def _batch_keys(self) -> list[dict[str, Any]]:
        try:
            node, buffers = self._fed()
        except MissingDataError:
            return []
        return [facts_of(name, leaf) for name, leaf in leaves(values.decode(node, buffers.__getitem__))]

    def _fed(self) -> tuple[Any, list[bytes]]:
        step = self._run.finished
        if step is None:
            raise MissingDataError("no step was made yet")
        return step.fed.stored()

    def _on_batch(self) -> tuple[dict[str, Any], bytes]:
        """The batch, in the encoding of `tracer.values`, as a trace keeps it."""
        with self.gate.held():
            node, buffers = self._fed()
        return {"batch": node, "sizes": [len(data) for data in buffers]}, b"".join(buffers)

    def _peek(self, request: Request) -> tuple[dict[str, Any], bytes]:
        what, names = request.get("what"), request.get("names")
        if what not in KINDS:
            raise UsageError(f"{what!r} is none of {', '.join(KINDS)}, batch")
        with self.gate.held():
            found = {facts["name"]: (facts, read) for facts, read in self._found(what)}
            missing = [name for name in names or () if name not in found]
            if missing:
                raise MissingDataError(
                    f"no {what} {missing[0]!r} at this step; there are: {', '.join(found) or 'none'}"
                )
            parts = [(facts, read()) for facts, read in map(found.__getitem__, names or found)]
        tensors = [{**facts, "nbytes": len(data)} for facts, data in parts]
        return {"tensors": tensors}, b"".join(data for _, data in parts)

    def _found(self, what: str) -> list[Described]:
        step = self._run.finished
        if what == "captures":
            kept = step.captures.values() if step is not None else ()
            return [({**facts, "name": facts["key"]}, lambda data=data: data) for facts, data in kept]
        if what == "before":
            return [(facts, lambda data=data: data) for facts, data in (step.before if step is not None else ())]
        if what == "weights":
            return [_described(name, tensor) for name, tensor in self._run.tensors.items()]
        kept_grads = step.grads if step is not None else {}
        return [
            _described(name, tensor, kept_grads.get(name))
            for name, tensor in ((n, t.grad if t.grad is not None else t) for n, t in self._run.tensors.items())
            if name in kept_grads or tensor is not self._run.tensors[name]
        ]


def _wait_of(request: Request) -> float:
    """How many seconds the client waits for the run to stand where it was told to. Raise UsageError."""
    wait = request.get("wait") or 0.0
    if not isinstance(wait, int | float) or not wait >= 0:
        raise UsageError(f"{wait!r} is no number of seconds to wait")
    return float(min(wait, _MOST_WAIT))


def _described(name: str, tensor: torch.Tensor, data: bytes | None = None) -> Described:
    return facts_of(name, tensor), lambda: bytes(values.tensor_bytes(tensor)) if data is None else data
