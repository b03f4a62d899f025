"""A rank of a distributed run under replay: it is replayed together with the others, each a process, all making the same moves. # B9

What one rank computes depends on what it hears from the others, so all are put to the same state and step together; the
verdicts are those of the rank that was asked for.
Room: replay. May touch: the processes it starts; the other ranks' traces are only read.
"""

from __future__ import annotations

import contextlib
import socket
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from replay.near_end import NearEnd, ProcessEnd
from tracer import origin, ranks
from tracer.errors import MissingDataError, RewindError
from tracer.trace import open_trace

if TYPE_CHECKING:
    from replay.channel import Message
    from tracer.trace import Trace


class Ranks:
    """All ranks of the run that `trace` is one of; none but itself where it was alone."""

    def __init__(self, trace: Trace) -> None:
        """Raise MissingDataError where one is not there, or is not this user's own as `trace` is."""
        self._rank = ranks.of(trace.manifest)
        self.others: list[Trace] = []
        with contextlib.ExitStack() as stack:
            for rank in range(self._rank[1]) if self._rank is not None else ():
                if rank != self._rank[0]:
                    self.others.append(stack.enter_context(_opened(trace, rank, self._rank)))
            self._stack = stack.pop_all()

    def common(self, keyframes: list[int]) -> list[int]:
        """Which of `keyframes` all have."""
        return [k for k in keyframes if all(k in other.keyframes for other in self.others)]

    def start(self, trace: Trace, options: dict[str, Any], program: None) -> NearEnd:
        """Start the program, and those of the other ranks."""
        return RankEnds(trace, options, self.others) if self.others else ProcessEnd(trace, options, program)

    def close(self) -> None:
        """Close the others' traces."""
        self._stack.close()


def _opened(trace: Trace, rank: int, own: tuple[int, int]) -> Trace:
    place = ranks.beside(trace.path, rank)
    why = f"{trace.path} is rank {own[0]} of {own[1]}, which are replayed together"
    try:
        other = open_trace(place)
    except RewindError as error:
        raise MissingDataError(f"{why}; rank {rank}: {error}", path=place) from None
    if (origin.is_ours(trace.manifest) and not origin.is_ours(other.manifest)) or ranks.of(other.manifest) != (
        rank,
        own[1],
    ):
        other.close()
        raise MissingDataError(f"{why}; {place} is not rank {rank} of a run that you recorded here", path=place)
    return other


class RankEnds(NearEnd):
    """The near ends of all ranks; what is asked of one that moves it is asked of all."""

    _MOVING = ("seek", "step")

    def __init__(self, trace: Trace, options: dict[str, Any], others: list[Trace]) -> None:
        """Start a process for each. Raise OSError where the machine cannot, MissingDataError for what only one rank could do."""
        if options.get("kind") is not None:
            raise MissingDataError(
                f"{trace.path} is one rank of {len(others) + 1}: they are replayed and verified together; branches and"
                " functions that need re-execution are not for them",
                path=trace.path,
            )
        meeting = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
        self.session = options["session"]
        self._own = ProcessEnd(trace, {**options, "meeting": meeting}, None)
        self.channel, self.scratch = self._own.channel, self._own.scratch
        self._ends = [self._own]
        for other in others:
            self._ends.append(ProcessEnd(other, {**options, "meeting": meeting}, None))

    def ask(self, message: Message) -> tuple[Message, list[bytes]]:
        """Send a command to all that have to follow it, and wait for the answer of one's own."""
        if message["do"] not in self._MOVING:
            return self._own.ask(message)
        if message["do"] == "step":
            message = {**message, "count": 1}  # One that diverges stops: none may be steps ahead and wait for it.
        for end in self._ends:
            end.channel.send(message)
        waiting = {end.channel: end for end in self._ends}
        answer: tuple[Message, list[bytes]] = ({}, [])
        while waiting:
            for channel in wait(list(waiting)):
                end = waiting.pop(channel)
                found = self._heard(end)
                if end is self._own:
                    answer = found
                if "error" in found[0] and end is not self._own:
                    return found  # One's own may wait for it for ever.
        return answer

    def _heard(self, end: ProcessEnd) -> tuple[Message, list[bytes]]:
        try:
            return end.channel.receive()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return {"error": "died", "detail": end.last_words()}, []

    def last_words(self) -> str:
        return self._own.last_words()

    def close(self) -> None:
        for end in self._ends:
            end.kill()  # One alone would wait for the others as it unwinds.
            end.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
