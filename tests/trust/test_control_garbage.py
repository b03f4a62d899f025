"""Whatever is sent to a run's control socket: one clear refusal, and the training goes on, unchanged. # S4.1"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import threading
from multiprocessing.connection import Client, answer_challenge, deliver_challenge

import pytest
import torch

import tracer
from tests.tracer.training import train_rows
from tracer.control import ADDRESS, KEY, MAX_REQUEST, Control, set_timeouts

ROUNDS = int(os.environ.get("REWIND_FLIPS", "300"))
VERBS = ("ping", "state", "pause", "step", "set", "keys", "peek", "stop at once", "", "__class__")
FIELDS = ("wait", "lease", "steps", "changes", "what", "names", "do")
BEFORE_THE_KEY = [
    b"",
    b"x",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x00" * 4,
    struct.pack("!i", 10) + b"half",
    struct.pack("!i", 2**31 - 1) + b"x" * 4096,
    struct.pack("!i", -1) + struct.pack("!Q", 2**63) + b"x",
    struct.pack("!i", -5),
    bytes(range(256)) * 4096,
    struct.pack("!i", 20) + b"#CHALLENGE#" + b"{md5}----",
    struct.pack("!i", 9) + b"#WELCOME#",
]
SENSELESS = [
    b"",
    b"\xff\xfe",
    b"{",
    b"null",
    b"5",
    b'"pause"',
    b"[" * 100_000,
    b'{"do":' * 20_000,
    b'{"do": 5}',
    b'{"do": "nothing of ours"}',
    b'{"do": "pause", "wait": "long"}',
    b'{"do": "pause", "wait": [1]}',
    b'{"do": "step", "steps": "3"}',
    b'{"do": "step", "steps": -1}',
    b'{"do": "set"}',
    b'{"do": "set", "changes": [1]}',
    b'{"do": "set", "changes": {"optimizer.lr": {"a": 1}}}',
    b'{"do": "set", "changes": {"optimizer.lr": NaN}}',
    b'{"do": "peek", "what": ["weights"]}',
    b'{"do": "peek", "what": "weights", "names": 5}',
    b'{"do": "peek", "what": "weights", "names": [["weight"]]}',
    b'{"do": "peek", "what": "weights", "names": [{}]}',
    b'{"do": "state", "x": ' + b"9" * 5000 + b"}",
]


@contextlib.contextmanager
def raw(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(json.loads((path / ADDRESS).read_bytes())["address"])
        connection.settimeout(10)
        yield connection


@contextlib.contextmanager
def admitted(path):
    """A client that knows the key, and may send what it likes."""
    with Client(json.loads((path / ADDRESS).read_bytes())["address"], "AF_UNIX") as connection:
        set_timeouts(connection, 10)
        key = (path / KEY).read_bytes()
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        yield connection


def refused(connection, message: bytes) -> None:
    connection.send_bytes(message)
    reply = json.loads(connection.recv_bytes())
    assert reply["ok"] is False, message[:80]
    assert reply["message"], message[:80]
    assert "\n" not in reply["message"]
    assert len(reply["message"]) < 1000


def works(path) -> bool:
    with Control(path) as control:
        return control.state()["status"] == "running"


@pytest.fixture
def attacked(unsealed, tmp_path):
    """Record while `attack(path)` runs between two steps; the weights are those of an undisturbed training."""
    plain = train_rows(steps=6)
    broken: list[object] = []

    def record(attack):
        path = tmp_path / "t"

        def at_step(k):
            if k == 3:
                attack(path)
                assert works(path)

        hook, threading.excepthook = threading.excepthook, broken.append
        try:
            with tracer.record(path):
                final = train_rows(at_step, steps=6)
        finally:
            threading.excepthook = hook
        assert not broken, broken
        assert all(torch.equal(plain[name], value) for name, value in final.items())
        with tracer.open_trace(path) as trace:
            assert trace.steps == 6

    return record


def test_bytes_of_who_does_not_know_the_key(attacked):
    def attack(path):
        for data in BEFORE_THE_KEY:
            with raw(path) as connection, contextlib.suppress(OSError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

    attacked(attack)


def test_requests_that_make_no_sense(attacked):
    def attack(path):
        with admitted(path) as connection:
            for message in SENSELESS:
                if b'"state"' not in message and b"NaN" not in message:
                    refused(connection, message)
                else:
                    connection.send_bytes(message)
                    json.loads(connection.recv_bytes())
        with admitted(path) as connection:
            with contextlib.suppress(OSError):
                connection.send_bytes(b" " * (MAX_REQUEST + 1))
            with pytest.raises((OSError, EOFError)):
                connection.recv_bytes()

    attacked(attack)


def test_requests_by_chance(attacked):
    def attack(path):
        dice = random.Random(5)
        with admitted(path) as connection:
            for _ in range(ROUNDS):
                request = {name: thing(dice, 2) for name in FIELDS if dice.random() < 0.4}
                request["do"] = dice.choice(VERBS) if dice.random() < 0.9 else request.get("do")
                if request["do"] == "pause" or request.get("wait"):
                    request["wait"] = 0  # the loop that would come to the place where it is held waits for this test
                connection.send_bytes(json.dumps(request).encode())
                reply = json.loads(connection.recv_bytes())
                if reply.get("data"):
                    connection.recv_bytes()
                assert reply["ok"] or "\n" not in reply["message"]
            connection.send_bytes(b'{"do": "resume"}')
            assert json.loads(connection.recv_bytes())["ok"]

    attacked(attack)


def thing(dice, depth: int):
    """Any JSON."""
    simple = (None, True, 0, -1, 2**70, 1.5, float("nan"), float("inf"), "", "weights", "x\n\x00", "optimizer.lr")
    if depth and dice.random() < 0.4:
        return [thing(dice, depth - 1) for _ in range(dice.randrange(3))]
    if depth and dice.random() < 0.3:
        return {str(thing(dice, 0)): thing(dice, depth - 1) for _ in range(dice.randrange(3))}
    return dice.choice(simple)


def test_more_clients_than_there_is_room_for(attacked):
    def attack(path):
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(raw(path)) for _ in range(100)]
            assert sum(turned_away(connection) for connection in silent) >= 100 - 64
        for _ in range(100):
            with contextlib.suppress(tracer.errors.ControlError):
                assert works(path)
                return
        raise AssertionError("it never answered again")

    attacked(attack)


def turned_away(connection) -> bool:
    """Whether the connection was ended: who is let in gets a challenge first."""
    return connection.recv(1) == b""
