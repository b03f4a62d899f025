"""The near end of an engine: a process of its own for a script or module, a thread for a function.

Room: replay. May touch: the processes it starts, and their scratch folders.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import tempfile
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay import home, host
from replay.channel import Channel, Message, Parked
from replay.file_view import FileView
from replay.sandbox import Sandbox
from tracer import beside, environment, rng
from tracer.trace import Trace, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("rewind")
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
        env = home.environment_of(trace.path, trace.manifest, self.session) | options.pop("meeting", {})
        text = json.dumps({**options, "scratch": str(self.scratch)})
        with open(self.scratch / "output.txt", "wb") as output, far:
            arguments = [str(trace.path.resolve()), text]
            self._nursery, self._pid = home.born(env, arguments, [far.fileno(), output.fileno()])
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
        home.buried(self._nursery)
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
