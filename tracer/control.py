"""The channel to a live run, as another process uses it. # S4.1

    with Control("runs/a") as run:
        run.pause(); run.set({"optimizer.lr": 0.01}); run.step(10); run.peek("grads"); run.resume()

The recorder listens on a Unix socket (`tracer.control_server`). Its address is in control.json, its key in control.key,
which only the owner can read. A message is JSON; bytes of tensors follow as a message of their own; nothing is pickled.
Room: tracer. May touch: reads the two files; one socket.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer import process
from tracer.errors import ControlError, MissingDataError, NameUnknownError, RewindError, UsageError
from tracer.manifest import read as read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import torch

ADDRESS = "control.json"
KEY = "control.key"
MAX_REQUEST = 1 << 20
TIMEOUT = 10.0
_ERRORS: dict[str, type[RewindError]] = {
    "name": NameUnknownError,
    "missing": MissingDataError,
    "usage": UsageError,
    "control": ControlError,
}


def error_name(error: RewindError) -> str:
    """Return the name under which `error` crosses the channel."""
    return next((name for name, kind in _ERRORS.items() if isinstance(error, kind)), "control")


class Control:
    """A connection to the run that is recording the trace at `path`; each verb returns the run's state.

    A state has `status` (running, pausing, stepping, paused, stopping, over), `step` (the next one), `by_hand`, `pid`,
    `hyperparameters`, `changes`: those that will be made when the run goes on, and `refused`: why the disk does not take
    what is recorded, while that lasts, else None. Every verb raises ControlError where
    the run is over, gone or not answering, UsageError where it refuses.
    """

    def __init__(self, path: str | Path, *, timeout: float = TIMEOUT) -> None:
        """Connect. `timeout`, in seconds, is how long an answer may take; a run that steps may take longer."""
        self.path = Path(path)
        self._timeout = timeout
        self._connection = self._connect()

    def _connect(self) -> Connection:
        address = self._address()
        try:
            key = (self.path / KEY).read_bytes()
            connection = Client(address, "AF_UNIX")
        except PermissionError:
            raise self._error(f"only the user who records {self.path} may control it") from None
        except OSError as error:
            raise self._gone(f"cannot be reached: {error}") from None
        try:
            set_timeouts(connection, self._timeout)
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
        except (AuthenticationError, OSError, EOFError) as error:
            connection.close()
            raise self._gone(f"does not answer: {error}") from None
        return connection

    def _address(self) -> str:
        try:
            known = json.loads((self.path / ADDRESS).read_bytes())
        except (OSError, ValueError):
            raise self._gone("has no control channel") from None
        if known.get("host") != socket.gethostname():
            raise self._error(f"{self.path} is being recorded on {known.get('host')}: control it there")
        return str(known["address"])

    def _gone(self, what: str) -> ControlError:
        """Say why there is nobody: the run is over, crashed, or at fault."""
        sessions = read_manifest(self.path).sessions
        status = process.standing(sessions[-1]) if sessions else "not yet training"
        if status != "running":
            return self._error(f"{self.path}: the run is {status}; there is nothing to control")
        return self._error(f"{self.path}: the run goes on, but {what}; try again, or end it with its process")

    def _error(self, message: str) -> ControlError:
        return ControlError(message, path=self.path)

    def request(self, do: str, *, timeout: float | None = None, **fields: Any) -> tuple[dict[str, Any], bytes]:
        """Send one request; return (answer, bytes that follow it)."""
        until = time.monotonic() + (self._timeout if timeout is None else timeout)
        try:
            self._connection.send_bytes(json.dumps({"do": do, **fields}).encode())
            answer = json.loads(self._receive(until))
            data = self._receive(until) if answer.get("data") else b""
        except (OSError, EOFError) as error:
            self._connection.close()
            raise self._gone(f"does not answer: {error or 'it closed the connection'}") from None
        if not answer["ok"]:
            raise _ERRORS.get(answer["error"], ControlError)(answer["message"], path=self.path)
        return answer, data

    def _receive(self, until: float) -> bytes:
        if not self._connection.poll(max(0.0, until - time.monotonic())):
            raise TimeoutError("no answer in time")
        return self._connection.recv_bytes()

    def _state(self, do: str, *, wait: float = 0.0, **fields: Any) -> dict[str, Any]:
        return self.request(do, timeout=self._timeout + wait, wait=wait, **fields)[0]["state"]

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def ping(self) -> float:
        """Return how many seconds the run took to answer."""
        started = time.perf_counter()
        self.request("ping")
        return time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """Return the run's state."""
        return self._state("state")

    def pause(self, *, lease: bool = False, wait: float = TIMEOUT) -> dict[str, Any]:
        """Hold the run at the end of its current step, and wait up to `wait` seconds for that.

        With `lease` the run goes on when this connection ends, unless somebody else holds it, too.
        """
        return self._state("pause", lease=lease, wait=wait)

    def resume(self) -> dict[str, Any]:
        """Let the run go on, whoever paused it."""
        return self._state("resume")

    def step(self, steps: int = 1, *, wait: float = TIMEOUT) -> dict[str, Any]:
        """Let the paused run make `steps` steps, and wait up to `wait` seconds for them."""
        return self._state("step", steps=steps, wait=wait)

    def stop(self) -> dict[str, Any]:
        """End the run at the end of its current step, as Ctrl-C does; what was recorded is whole."""
        return self._state("stop")

    def set(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change hyperparameters of the paused run (`tracer.hyperparameters`), from the next step on."""
        return self._state("set", changes=dict(changes))

    def keys(self) -> dict[str, list[dict[str, Any]]]:
        """What can be asked of the paused step: {"weights" | "before" | "grads" | "captures" | "batch": [{name, dtype, shape}]}."""
        return self.request("keys")[0]["keys"]

    def peek(self, what: str, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Return weights, grads, captures or batch of the paused step, or the weights before it, at any level of detail.

        All of them, or those named; arrays of a batch by their place in it: `0`, `1.mask`. `batch()` gives it nested as it was.
        """
        from tracer.values import bytes_tensor  # noqa: PLC0415  torch is heavy, and `rewind pause` needs none

        if what == "batch":
            return self._batch_arrays(names)
        answer, data = self.request("peek", what=what, names=None if names is None else list(names))
        found, place = {}, 0
        for entry in answer["tensors"]:
            part = data[place : place + entry["nbytes"]]
            found[entry["name"]] = bytes_tensor(part, entry["dtype"], tuple(entry["shape"]))
            place += entry["nbytes"]
        return found

    def batch(self) -> Any:
        """Return the batch of the paused step as it was fed, nested as the loop got it.

        Of a run whose trace keeps batches (detail replay or full) ask the trace. Raise MissingDataError where it was not
        kept: the loop has overwritten it, say; of the next step it is there.
        """
        from tracer.values import decode  # noqa: PLC0415

        answer, data = self.request("peek", what="batch")
        parts, place = [], 0
        for size in answer["sizes"]:
            parts.append(data[place : place + size])
            place += size
        return decode(answer["batch"], parts.__getitem__)

    def _batch_arrays(self, names: Sequence[str] | None) -> dict[str, torch.Tensor]:
        from tracer.fed import leaves  # noqa: PLC0415

        found = dict(leaves(self.batch()))
        missing = [name for name in names or () if name not in found]
        if missing:
            raise MissingDataError(f"no {missing[0]!r} in this batch; there are: {', '.join(found) or 'none'}")
        return found if names is None else {name: found[name] for name in names}

    def close(self) -> None:
        """End the connection, and the lease with it."""
        self._connection.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def set_timeouts(connection: Connection, seconds: float) -> None:
    """Let reads and writes on `connection` fail with OSError after `seconds`, rather than wait for ever."""
    value = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as handle:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
