"""The recorder's side of the control channel: a Unix socket, one thread for it and one for each client.

Life cycle, as one can observe it: control.json and control.key are there while the run can be controlled, and go when
it is over. A killed process leaves them; nobody takes them for a live channel, since nobody answers there.
Room: tracer. May touch: the two files, a private temporary directory with the socket.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
import weakref
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import TYPE_CHECKING, Any, Protocol

from tracer import process
from tracer.control import ADDRESS, KEY, MAX_REQUEST, TIMEOUT, error_name, set_timeouts
from tracer.errors import RewindError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_ADDRESS = 100
_MOST_CLIENTS = 64
_GRACE = 0.5
_MOST_SAID = 300
_log = logging.getLogger("rewind")


class Handler(Protocol):
    """What answers the requests; called from the clients' threads."""

    def answer(self, request: dict[str, Any], client: str) -> tuple[dict[str, Any], bytes]:
        """Return (fields of the answer, bytes that follow it). Raise RewindError where it is refused."""

    def gone(self, client: str) -> None:
        """The connection of `client` has ended."""


class Server:
    """Accepts clients that know the key, and answers them."""

    def __init__(self, path: Path, handler: Handler) -> None:
        """Listen, for the trace at `path`. Raise OSError where the system refuses."""
        self._path = path
        self._handler = handler
        self._folder = _private_folder()
        self._address = f"{self._folder}/s"
        self._key = secrets.token_hex(32).encode()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self._address)
        self._socket.listen(_MOST_CLIENTS)
        self._clients: dict[str, Connection] = {}
        self._count = 0
        self._answering = 0
        self._closing = False
        self.publish()
        _living.add(self)
        threading.Thread(target=self._accept, name="rewind-control", daemon=True).start()

    def publish(self) -> None:
        """Write where the channel is, and its key, into the trace."""
        me = os.getpid()
        facts = {"address": self._address, "host": socket.gethostname(), "pid": me, "pid_started": process.started(me)}
        _write_private(self._path / KEY, self._key)
        _write_private(self._path / ADDRESS, json.dumps(facts).encode())

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection = Connection(self._socket.accept()[0].detach())
            except OSError:
                if self._closing:
                    return
                time.sleep(_GRACE)  # no file descriptor is free, say: there may be one later
                continue
            if self._closing or len(self._clients) >= _MOST_CLIENTS:
                connection.close()
                continue
            self._count += 1
            name = f"client-{self._count}"
            self._clients[name] = connection
            threading.Thread(target=self._serve, args=(name, connection), name=f"rewind-{name}", daemon=True).start()

    def _serve(self, name: str, connection: Connection) -> None:
        try:
            set_timeouts(connection, TIMEOUT)
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            set_timeouts(connection, 0)
            while True:
                self._answer(name, connection)
        except (OSError, EOFError, AuthenticationError, ValueError, AssertionError):
            pass  # It went, or never was one of ours.
        finally:
            self._clients.pop(name, None)
            connection.close()
            self._handler.gone(name)

    def _answer(self, name: str, connection: Connection) -> None:
        message = connection.recv_bytes(MAX_REQUEST)
        self._answering += 1
        try:
            self._reply(_parsed(message), name, connection)
        finally:
            self._answering -= 1

    def _reply(self, request: Any, name: str, connection: Connection) -> None:
        data = b""
        try:
            if not isinstance(request, dict) or not isinstance(request.get("do"), str):
                raise UsageError("a request is a JSON object with a `do`")
            fields, data = self._handler.answer(request, name)
            reply: dict[str, Any] = {"ok": True, "data": bool(data), **fields}
        except RewindError as error:
            reply = {"ok": False, "error": error_name(error), "message": str(error)}
        except (TypeError, ValueError, LookupError, OverflowError, RecursionError) as error:
            reply = {"ok": False, "error": "usage", "message": f"this request makes no sense: {error!r}"[:_MOST_SAID]}
        connection.send_bytes(json.dumps(reply).encode())
        if data:
            connection.send_bytes(data)

    def close(self) -> None:
        """Stop listening; clients are told by the end of their connection, after the answers that are under way."""
        self._closing = True
        end = time.monotonic() + _GRACE
        while self._answering > 0 and time.monotonic() < end:
            time.sleep(0.001)
        for name in (ADDRESS, KEY):
            (self._path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as wake:
            wake.settimeout(1)
            wake.connect(self._address)  # A thread that waits in accept() sees nothing of a close.
        self._socket.close()
        for connection in list(self._clients.values()):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as handle:
                handle.shutdown(socket.SHUT_RDWR)
        shutil.rmtree(self._folder, ignore_errors=True)

    def forget(self) -> None:
        """In a forked child: nothing of the channel may be held open by it."""
        self._closing = True
        self._socket.close()
        for connection in self._clients.values():
            connection.close()


def _parsed(message: bytes) -> Any:
    """What the message says; None where it is no JSON."""
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        return None


def _private_folder() -> str:
    """Return a new directory that only its owner may enter, with a path short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix="rewind-")
    if len(os.fsencode(folder)) + 2 > _LONGEST_ADDRESS:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="rewind-", dir="/tmp")
    return folder


def _write_private(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    os.replace(temporary, path)


_living: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork() -> None:
    for server in list(_living):
        server.forget()


os.register_at_fork(after_in_child=_after_fork)
