"""Where engines are born: a process that has loaded torch, and nothing else, forks one for each program that starts afresh.

To load torch, and what the first step of an optimizer loads, takes seconds; to fork takes a hundredth of one. Before the fork
the process has run no operation of torch and read no trace, so each engine starts as one does that was started by hand, in
the environment that the nursery was given. `python -m replay.nursery FD` is started by `home`; FD is its end of a socket
pair. It ends with who started it, or when nobody has asked for long.
Room: replay. May touch: processes of its own.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress

import torch._dynamo  # noqa: F401  loaded once, for all engines

from replay import host

_IDLE_SECONDS = 120.0
_MOST = 1 << 20


def serve(asked: socket.socket) -> None:
    """Fork an engine for each request, until the other end is closed."""
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([asked], [], [], _IDLE_SECONDS)
        if not ready and not _living(children):
            return
        if not ready:
            continue
        data, passed, _, _ = socket.recv_fds(asked, _MOST, 2)
        if not data:
            for child in _living(children):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return
        request = json.loads(data)
        if "end" in request:
            asked.send(json.dumps({"ended": _end(children, request["end"], request["kill"])}).encode())
            continue
        child = _fork(asked, request["arguments"], passed)
        children.add(child)
        asked.send(json.dumps({"pid": child}).encode())


def _fork(asked: socket.socket, arguments: list[str], passed: list[int]) -> int:
    descriptor, output = passed
    child = os.fork()
    if child:
        os.close(descriptor)
        os.close(output)
        return child
    try:
        asked.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(output)
        host.main([str(descriptor), *arguments])
    except BaseException:  # noqa: BLE001  a child never goes on as its parent would
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)


def _living(children: set[int]) -> set[int]:
    for child in list(children):
        _end(children, child, kill=False)
    return children


def _end(children: set[int], child: int, kill: bool) -> bool:
    """Return whether `child` has ended; end it first if it is to be killed."""
    if child not in children:
        return True
    if kill:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    found, _ = os.waitpid(child, 0 if kill else os.WNOHANG)
    if found:
        children.discard(child)
    return bool(found)


if __name__ == "__main__":
    gc.freeze()  # what is loaded stays loaded: engines need not look through it, nor copy its pages
    with socket.socket(fileno=int(sys.argv[1])) as own:
        serve(own)
    os._exit(0)  # what is frozen is never freed, and some libraries would complain of that to the user
