"""The near end of an engine: a process of its own for a script or module, a thread for a function.

Room: replay. May touch: the processes it starts, and their scratch folders.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay import host
from replay.channel import Channel, Message, Parked
from replay.file_view import FileView
from replay.sandbox import Sandbox
from tracer import beside, environment, origin, rng, variables
from tracer.errors import ReplayError
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("rewind")
_ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 5.0


class NearEnd:
    """What a session asks."""

    channel: Channel
    session: int
    scratch: Path

    def ask(self, message: Message) -> tuple[Message, list[bytes]]:
        """Send a command and wait for its answer."""
        self.channel.send(message)
        return self.channel.receive()

    def last_words(self) -> str:
        """The end of what the program printed."""
        return ""

    def close(self) -> None:
        """End it."""


class _Nursery:
    """The process that forks engines for programs that were recorded in one environment."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "replay.nursery", str(far.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env, cwd=_ROOT
        )
        far.close()
        self._socket = near
        self._one = threading.Lock()
        self.engines = 0

    def fork(self, arguments: list[str], descriptors: list[int]) -> int:
        """Return the pid of a new engine. Raise OSError or EOFError where the nursery is gone."""
        request = json.dumps({"arguments": arguments}).encode()
        with self._one:
            socket.send_fds(self._socket, [request], descriptors)
            pid = int(self._answer()["pid"])
        self.engines += 1
        return pid

    def ended(self, pid: int, *, kill: bool = False) -> bool:
        """Whether the engine has ended; `kill` ends it."""
        try:
            with self._one:
                self._socket.send(json.dumps({"end": pid, "kill": kill}).encode())
                return bool(self._answer()["ended"])
        except (OSError, EOFError):
            return True  # The nursery took its engines with it.

    def _answer(self) -> dict[str, Any]:
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        return json.loads(data)

    def close(self) -> None:
        """End it, and the engines that it has."""
        self._socket.close()
        self._process.wait()


class _Home:
    """The nursery of this process: one, for the environment that was wanted last."""

    nursery: _Nursery | None = None
    moving = threading.Lock()


def _born(env: dict[str, str], arguments: list[str], descriptors: list[int]) -> tuple[_Nursery, int]:
    """Fork an engine; from a new nursery where there is none for `env`, or it went when nobody needed it."""
    with _Home.moving:
        known = _Home.nursery
        if known is not None and known.env == env:
            with contextlib.suppress(OSError, EOFError):
                return known, known.fork(arguments, descriptors)
        if known is not None and not known.engines:
            known.close()
        made = _Home.nursery = _Nursery(env)
        try:
            return made, made.fork(arguments, descriptors)
        except (OSError, EOFError) as error:
            raise ReplayError(f"no process can be started to replay in: {error or 'it ended at once'}") from None


def _buried(nursery: _Nursery) -> None:
    """An engine of it has ended: one that is not the latest ends with its last engine."""
    with _Home.moving:
        nursery.engines -= 1
        if not nursery.engines and nursery is not _Home.nursery:
            nursery.close()


@atexit.register
def _leave() -> None:
    with _Home.moving:
        nursery, _Home.nursery = _Home.nursery, None
    if nursery is not None:
        nursery.close()


def _forked() -> None:
    """Our parent's nursery is not ours."""
    _Home.nursery, _Home.moving = None, threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _warn(trace: Trace, session: int) -> None:
    """Say, once, what of the session's files is not there as it was written: its program may not find what the run found."""
    facts = trace.manifest.session(session)
    for line in [] if facts is None else beside.of_session(trace.path, facts):
        if line not in _warned:
            _warned.add(line)
            _log.warning("%s", line)


_warned: set[str] = set()


class ProcessEnd(NearEnd):
    """A program in a process of its own."""

    def __init__(self, trace: Trace, options: dict[str, Any], program: None) -> None:
        """Start the process; it waits for its first command. Raise OSError where the machine cannot."""
        self.session = options["session"]
        self.scratch = Path(tempfile.mkdtemp(prefix="rewind-"))
        _warn(trace, self.session)
        near, far = socket.socketpair()
        # What others have changed of one's own trace is not given to its program.
        looked_up = variables.read(trace.path, self.session, ours=origin.is_ours(trace.manifest))
        env = looked_up.given(environment.child_environment(trace.manifest.environment))
        env |= options.pop("meeting", {})
        env.pop("PYTEST_CURRENT_TEST", None)  # other in each test: each would have a nursery of its own
        env["PYTHONPATH"] = os.pathsep.join(p for p in (str(_ROOT), env.get("PYTHONPATH", "")) if p)
        text = json.dumps({**options, "scratch": str(self.scratch)})
        with open(self.scratch / "output.txt", "wb") as output, far:
            arguments = [str(trace.path.resolve()), text]
            self._nursery, self._pid = _born(env, arguments, [far.fileno(), output.fileno()])
        self.channel = Channel(Connection(near.detach()))

    def last_words(self) -> str:
        text = (self.scratch / "output.txt").read_text(errors="replace").strip()
        return text[-400:].replace("\n", " | ")

    def kill(self) -> None:
        """End the process at once; `close` is still to be called."""
        self._nursery.ended(self._pid, kill=True)

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.channel.send({"do": "close"})
        deadline = time.monotonic() + _PATIENCE
        while not (ended := self._nursery.ended(self._pid)) and time.monotonic() < deadline:
            if not self._said_last(deadline):
                break
        self.channel.close()
        if not ended:
            self._nursery.ended(self._pid, kill=True)
        _buried(self._nursery)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _said_last(self, deadline: float) -> bool:
        """Wait for what the engine still says, at last that it is gone; False where it says nothing in time."""
        try:
            self.channel.receive(timeout=max(0.0, deadline - time.monotonic()))
        except (OSError, EOFError):
            self._nursery.ended(self._pid, kill=True)  # Its end is closed: nothing of it is wanted any more.
        except TimeoutError:
            return False
        return True


class ThreadEnd(NearEnd):
    """A function in a thread of this process; what that thread writes goes to the scratch folder, as a process's does."""

    def __init__(self, trace: Trace, options: dict[str, Any], program: Callable[[], Any]) -> None:
        """Start the thread; it waits for its first command."""
        self.session = options["session"]
        self.scratch = Path(tempfile.mkdtemp(prefix="rewind-"))
        _warn(trace, self.session)
        near, far = Pipe()
        self.channel = Channel(near)
        self._far = far
        environment.restore(trace.manifest.environment)
        self._thread = threading.Thread(
            target=_run,
            args=(trace.path, Parked(far), options, program, self.scratch),
            name="rewind engine",
            daemon=True,
        )
        self._thread.start()

    def ask(self, message: Message) -> tuple[Message, list[bytes]]:
        """As above; the caller's random generators are afterwards as they were."""
        before = rng.capture_state()
        try:
            return super().ask(message)
        finally:
            rng.restore_state(before)

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.channel.send({"do": "close"})
        self.channel.close()
        self._thread.join(timeout=30)
        self._far.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _run(trace: Path, channel: Parked, options: dict[str, Any], program: Callable[[], Any], scratch: Path) -> None:
    """Run the function; what other threads write, its own helpers' among it, is none of the sandbox's."""
    with open_trace(trace) as opened:
        view = FileView(opened, options["session"])
        sandbox = Sandbox(scratch, options.get("writable", ()), view, thread=threading.get_ident())
        with sandbox.entered():
            host.run_program(opened, channel, options, lambda: _call(program), sandbox)


def _call(program: Callable[[], Any]) -> None:
    __rewind_program_starts_here__ = True  # noqa: F841  marks this frame: see frames.BOTTOM
    program()
