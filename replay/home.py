"""The nursery of this process: it is started, asked for engines, and ended here.

Loads no torch: a nursery takes seconds to load it, and may do so while this process loads its own (`prepare`).
Room: replay. May touch: the processes it starts.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer import manifest, origin, shell, variables
from tracer.errors import ReplayError, RewindError

if TYPE_CHECKING:
    from tracer.manifest import Manifest

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_ROOT = Path(__file__).resolve().parent.parent


def environment_of(trace: Path, facts: Manifest, session: int) -> dict[str, str]:
    """Return the environment in which the program of a session is started again."""
    # What others have changed of one's own trace is not given to its program.
    looked_up = variables.read(trace, session, ours=origin.is_ours(facts))
    env = looked_up.given(shell.child_environment(facts.environment))
    env.pop("PYTEST_CURRENT_TEST", None)  # other in each test: each would have a nursery of its own
    if env.get(_CACHE, "").startswith(os.path.join(tempfile.gettempdir(), "torchinductor_")):
        del env[_CACHE]  # torch sets it so as it is loaded, here as there
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(_ROOT), env.get("PYTHONPATH", "")) if p)
    return env


def prepare(trace: str | Path) -> None:
    """Start the nursery that `trace` will need, where that is known: it loads what engines need while others do.

    What is wrong with the trace is said by who opens it.
    """
    with contextlib.suppress(RewindError, OSError):
        facts = manifest.read(Path(trace))
        if len(facts.sessions) == 1 and "world_size" not in facts.environment:
            env = environment_of(Path(trace), facts, facts.sessions[0].session)
            with Home.moving:
                _nursery_for(env)


class Nursery:
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
        self._asked = False
        self.engines = 0

    def fork(self, arguments: list[str], descriptors: list[int]) -> int:
        """Return the pid of a new engine. Raise OSError or EOFError where the nursery is gone."""
        request = json.dumps({"arguments": arguments}).encode()
        self._asked = True
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
        if not self._asked:
            self._process.kill()  # it may still be loading
        self._process.wait()


class Home:
    """The nursery of this process: one, for the environment that was wanted last."""

    nursery: Nursery | None = None
    moving = threading.Lock()


def born(env: dict[str, str], arguments: list[str], descriptors: list[int]) -> tuple[Nursery, int]:
    """Fork an engine; from a new nursery where there is none for `env`, or it went when nobody needed it."""
    with Home.moving:
        known = Home.nursery
        if known is not None and known.env == env:
            with contextlib.suppress(OSError, EOFError):
                return known, known.fork(arguments, descriptors)
            _move_out()
        made = _nursery_for(env)
        try:
            return made, made.fork(arguments, descriptors)
        except (OSError, EOFError) as error:
            raise ReplayError(f"no process can be started to replay in: {error or 'it ended at once'}") from None


def _nursery_for(env: dict[str, str]) -> Nursery:
    if Home.nursery is None or Home.nursery.env != env:
        _move_out()
        Home.nursery = Nursery(env)
    return Home.nursery


def _move_out() -> None:
    """One that is left with engines ends with the last of them."""
    known, Home.nursery = Home.nursery, None
    if known is not None and not known.engines:
        known.close()


def buried(nursery: Nursery) -> None:
    """An engine of it has ended: one that is not the latest ends with its last engine."""
    with Home.moving:
        nursery.engines -= 1
        if not nursery.engines and nursery is not Home.nursery:
            nursery.close()


@atexit.register
def _leave() -> None:
    with Home.moving:
        nursery, Home.nursery = Home.nursery, None
    if nursery is not None:
        nursery.close()


def _forked() -> None:
    """Our parent's nursery is not ours."""
    Home.nursery, Home.moving = None, threading.Lock()


os.register_at_fork(after_in_child=_forked)
