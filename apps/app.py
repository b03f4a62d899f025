"""The app's server: Panel's own Tornado server, bound to this machine, behind a token.

The address that is printed holds the token; the page keeps it as a cookie and takes it out of the address bar. Without
it neither pages nor WebSockets nor the JSON API answer.
Room: apps. May touch: a port of this machine, the traces it is given.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import warnings
import webbrowser
from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

import panel as pn
from bokeh.server.auth_provider import AuthProvider
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler
from tornado.websocket import WebSocketClosedError

from apps import address as address_book
from apps.api import handlers
from apps.memory import settled
from apps.runs import Runs
from apps.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from bokeh.document import Document
    from bokeh.server.server import Server

    from apps.address import Address

LOCAL = "127.0.0.1"
_MOST_BODY = 1 << 20
"""Bytes of a request: what is larger is refused before it is read, whoever sends it."""


@dataclass(frozen=True)
class Served:
    """A server that listens; `url` is what a browser opens. `run` serves until it is stopped."""

    server: Server
    url: str
    token: str
    runs: Runs
    place: Address

    def run(self) -> None:
        """Serve until Ctrl-C."""
        try:
            self.server.io_loop.start()
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening and close the traces."""
        self.server.stop()
        self.runs.close()
        address_book.ended(self.place)


class Door(AuthProvider):
    """Lets in who brings the token, in the address or as a cookie."""

    def __init__(self, token: str) -> None:
        """`token` is this server's own, drawn anew at each start."""
        self._token = token
        super().__init__()

    @property
    def get_user(self) -> Callable[[RequestHandler], str | None]:
        """Who is it: the owner, or nobody."""
        return self._who

    @property
    def get_user_async(self) -> None:
        """Not used."""
        return

    @property
    def login_url(self) -> str:
        """Where nobody is sent."""
        return "/denied"

    @property
    def get_login_url(self) -> None:
        """Not used."""
        return

    @property
    def login_handler(self) -> type[RequestHandler]:
        """Says what to do."""
        return Denied

    @property
    def logout_url(self) -> None:
        """There is none."""
        return

    @property
    def logout_handler(self) -> None:
        """There is none."""
        return

    def _who(self, handler: RequestHandler) -> str | None:
        given = handler.get_query_argument("token", "")
        if given and compare_digest(given.encode(), self._token.encode()):
            handler.set_cookie(cookie_name(handler), self._token, httponly=True, samesite="Strict")
            return "owner"
        kept = handler.get_cookie(cookie_name(handler)) or ""
        return "owner" if compare_digest(kept.encode(), self._token.encode()) else None


def cookie_name(handler: RequestHandler) -> str:
    """Cookies know no ports: two servers on one machine keep theirs apart by name."""
    return f"rewind-{handler.request.host.rpartition(':')[2]}"


class Alive(RequestHandler):
    """GET /alive?nonce=: says that this is the server whose pages know `proof`, to whom asks; nothing else."""

    def initialize(self, proof: str) -> None:
        """Take what `serve` gives."""
        self._proof = proof

    def get(self) -> None:
        """The nonce, signed."""
        self.set_header("Cache-Control", "no-store")
        self.finish(address_book.answer(self._proof, self.get_query_argument("nonce", "")[:64]))


class Denied(RequestHandler):
    """The page for those without the token."""

    def get(self) -> None:
        """403, and what to do."""
        self.set_status(403)
        self.finish("<title>Rewind</title><p>Open the address that <code>rewind app</code> printed: it holds a token.")


def serve(
    paths: Iterable[str | Path],
    *,
    port: int = 0,
    address: str = LOCAL,
    token: str | None = None,
    runs: Runs | None = None,
    redraw: float | None = None,
) -> Served:
    """Start to serve the traces at `paths`; nothing is shown yet. `port` 0 takes the one of the last time, or a free one.

    `redraw`: how many seconds at least lie between two redraws of a live run.
    Raise NotATraceError where there is no trace, OSError where the port is taken.
    """
    if port:
        # Asked first: Tornado leaves its socket open where the port is taken.
        socket.create_server((address, port)).close()
    runs = runs or Runs(paths, redraw=redraw)
    runs.open(runs.names[0])
    before = address_book.recall(runs.asked, address, port)
    if token is None and before is not None:
        port, token = before.port, before.token
    token = token or secrets.token_urlsafe(24)
    runs.proof = address_book.proof(token)
    pn.extension(notifications=False)
    # Panel itself silences this word of Bokeh's in notebooks: a model is told of twice, and nothing is lost.
    warnings.filterwarnings("ignore", "reference already known")
    hosts: set[str] = set()
    listening = {} if port == 0 else {"port": port}
    server = pn.serve(
        {"/": lambda: page(runs)},
        address=address,
        show=False,
        start=False,
        title="Rewind",
        verbose=False,
        location=False,
        websocket_origin=[],
        auth_provider=Door(token),
        cookie_secret=secrets.token_hex(16),
        http_server_kwargs={"max_body_size": _MOST_BODY},
        extra_patterns=[
            (r"/alive", Alive, {"proof": runs.proof}),
            *handlers(runs, token, lambda: hosts, cookie_name),
        ],
        check_unused_sessions_milliseconds=5000,
        unused_session_lifetime_milliseconds=15000,
        **listening,
    )
    server.start()  # not the loop, but what clears away the sessions of closed pages
    found = server.port
    hosts.update(origins(address, found))
    server._tornado._websocket_origins.update(hosts)
    place = address_book.remember(runs.asked, address, found, token)
    return Served(server, f"http://{host_of(address)}:{found}/?token={token}", token, runs, place)


def undelayed(document: Document) -> None:
    """Let small messages to a page go out at once.

    A message of Bokeh's is several small pieces; by default all but the first may wait 40 ms for the browser's word.
    """
    for connection in document.session_context.session._subscribed_connections:
        connection._socket.set_nodelay(True)


def host_of(address: str) -> str:
    """The name under which a browser on this machine finds the server."""
    return address if address == LOCAL else "localhost" if address in ("", "0.0.0.0") else address


def origins(address: str, port: int) -> set[str]:
    """The hosts, with port, whose pages may speak to this server."""
    return {f"{name}:{port}" for name in (LOCAL, "localhost", host_of(address))}


def page(runs: Runs) -> Any:
    """One page, for one browser tab."""
    arguments = pn.state.session_args if pn.state.curdoc else {}
    query = "&".join(f"{n}={v[-1].decode()}" for n, v in arguments.items() if n != "token")
    viewer = Viewer(runs, query)
    document = pn.state.curdoc
    if document:
        pn.state.on_session_destroyed(lambda _: viewer.close())
        pn.state.onload(lambda: undelayed(document))
    return viewer.root


def show(served: Served, *, browser: bool) -> None:
    """Print the address, open it in a browser where wanted, and serve until Ctrl-C."""
    print(f"Rewind is at {served.url}\nCtrl-C ends it.", flush=True)  # noqa: T201 -- the address is the answer
    if browser:
        served.server.io_loop.add_callback(webbrowser.open, served.url)
    logging.getLogger("asyncio").addFilter(_is_news)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ended by others, too, it ends in good order.
    settled()
    served.run()


def _is_news(record: logging.LogRecord) -> bool:
    """That a page was closed while something was on its way to it is none."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, WebSocketClosedError | StreamClosedError)
