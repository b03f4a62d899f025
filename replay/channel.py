"""What the two ends of an engine say to each other: JSON, and raw bytes where there are tensors; never pickles.

Room: replay. May touch: the connection it is given; `Parked`, this process's random generators, between two commands.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tracer import rng

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Message = dict[str, Any]


class Channel:
    """Sends and receives messages: a JSON object, then as many byte strings as it says."""

    def __init__(self, connection: Connection) -> None:
        """`connection` is one end of a pipe or of a socket pair."""
        self._connection = connection

    def send(self, message: Message, parts: list[bytes] | None = None) -> None:
        """Send a message and its parts."""
        self._connection.send_bytes(json.dumps({**message, "parts": len(parts or ())}).encode())
        for part in parts or ():
            self._connection.send_bytes(part)

    def receive(self, timeout: float | None = None) -> tuple[Message, list[bytes]]:
        """Wait for a message. Raise EOFError when the other end is gone, TimeoutError after `timeout` seconds."""
        if timeout is not None and not self._connection.poll(timeout):
            raise TimeoutError
        message = json.loads(self._connection.recv_bytes())
        return message, [self._connection.recv_bytes() for _ in range(message.pop("parts"))]

    def fileno(self) -> int:
        """The descriptor that is readable when something has come."""
        return self._connection.fileno()

    def close(self) -> None:
        """Close this end."""
        self._connection.close()


class Parked(Channel):
    """The program's end where it shares a process with whoever commands it: while it waits, its random generators wait, too."""

    _LOOKING = frozenset(("state", "captures", "grads", "watched", "define"))

    def __init__(self, connection: Connection) -> None:
        """As Channel."""
        super().__init__(connection)
        self._random: dict[str, Any] | None = None
        self._doing = ""

    def send(self, message: Message, parts: list[bytes] | None = None) -> None:
        """Keep the generators as the program left them; what is only looked at does not move them."""
        if self._doing not in self._LOOKING:
            self._random = rng.capture_state()
        super().send(message, parts)

    def receive(self, timeout: float | None = None) -> tuple[Message, list[bytes]]:
        """Wait, and put the generators back: the commanding thread may have used them."""
        message, parts = super().receive(timeout)
        if self._random is not None:
            rng.restore_state(self._random)
        self._doing = message["do"]
        return message, parts
