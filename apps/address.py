"""Where an app of these traces was last: started again, it is there again, and pages left open come back by themselves.

One small file per set of traces, in the user's state directory, which only the user can read: it holds the token. It also
tells `rewind doctor` which app should be reachable.
Room: apps. May touch: that directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer import process

if TYPE_CHECKING:
    from collections.abc import Iterable

_SECONDS = 3.0


@dataclass(frozen=True)
class Address:
    """An app: where it listens, what it shows, which process it is. `pid` 0: it was ended in good order."""

    address: str
    port: int
    token: str
    traces: tuple[str, ...]
    pid: int
    pid_started: float
    started: float

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return bool(self.pid) and process.started(self.pid) == self.pid_started

    def shows(self, trace: Path) -> bool:
        """Whether `trace` is among what it shows."""
        own = trace.resolve()
        return any(own == Path(path) or Path(path) in own.parents for path in self.traces)

    def answers(self) -> bool:
        """Whether it is this very app that answers at its port."""
        nonce = secrets.token_hex(16)
        host = "127.0.0.1" if self.address in ("", "0.0.0.0") else self.address
        connection = http.client.HTTPConnection(host, self.port, timeout=_SECONDS)
        try:
            connection.request("GET", f"/alive?nonce={nonce}")
            return connection.getresponse().read().decode() == answer(proof(self.token), nonce)
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def proof(token: str) -> str:
    """What the pages of a server with this token know of it, and nobody else."""
    return hmac.new(token.encode(), b"page", hashlib.sha256).hexdigest()


def answer(known: str, nonce: str) -> str:
    """What a server says to show that it knows `known`."""
    return hmac.new(known.encode(), nonce.encode(), hashlib.sha256).hexdigest()


def folder() -> Path:
    """Where the files lie."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "rewind" / "apps"


def recall(traces: Iterable[Path], address: str, port: int) -> Address | None:
    """The app of these traces that was at `port` (0: anywhere) and is there no more, None where there was none."""
    found = _read(_file(traces, address))
    if found is None or found.running or port not in (0, found.port) or not _is_free(address, found.port):
        return None
    return found


def remember(traces: Iterable[Path], address: str, port: int, token: str) -> Address:
    """This process is the app of these traces. Where nothing can be kept, nothing is: a restart has a new address then."""
    me = os.getpid()
    paths = tuple(str(path.resolve()) for path in traces)
    own = Address(address, port, token, paths, me, process.started(me), time.time())
    _write(_file(traces, address), own)
    return own


def ended(own: Address) -> None:
    """The app was ended in good order."""
    _write(_file(map(Path, own.traces), own.address), Address(**{**asdict(own), "pid": 0, "pid_started": 0.0}))


def known() -> list[Address]:
    """The apps that are remembered; those whose traces are gone are forgotten."""
    found = []
    with contextlib.suppress(OSError, RuntimeError):
        for file in sorted(folder().glob("*.json")):
            one = _read(file)
            if one is not None and any(Path(path).exists() for path in one.traces):
                found.append(one)
            elif one is not None:
                file.unlink(missing_ok=True)
    return found


def _file(traces: Iterable[Path], address: str) -> Path | None:
    said = json.dumps([address, *sorted(str(path.resolve()) for path in traces)])
    with contextlib.suppress(RuntimeError):  # There is no home.
        return folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"
    return None


def _read(file: Path | None) -> Address | None:
    """What a file says; None where there is none, or others than its owner could have written or read it."""
    try:
        if file is None or file.stat().st_uid != os.getuid() or file.stat().st_mode & 0o077:
            return None
        facts = json.loads(file.read_bytes())
        return Address(**{**facts, "traces": tuple(facts["traces"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(file: Path | None, own: Address) -> None:
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            json.dump(asdict(own), out)
        os.replace(temporary, file)
        known()


def _is_free(address: str, port: int) -> bool:
    try:
        socket.create_server((address, port)).close()
    except OSError:
        return False
    return True
