"""Who may talk to the app's server, and what it tells those who may not: pages, WebSockets and the JSON API alike. # S4.8, B8"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import shutil
import socket
import threading
from urllib.parse import quote, urlsplit

import pytest

from apps.api import Guarded, handlers
from apps.openapi import document
from tests.tracer.synthetic import make_trace


class Server:
    """The whole server, in a thread of its own."""

    def __init__(self, path):
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(path, started), daemon=True)
        self._thread.start()
        assert started.wait(60)

    def _serve(self, path, started):
        async def main():
            from apps.app import serve

            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            self.served = serve([path])
            self.port = urlsplit(self.served.url).port
            self.token = self.served.token
            self.cookie = f"rewind-{self.port}={self.token}"
            started.set()
            await self._stop.wait()
            self.served.close()

        asyncio.run(main())

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def send(self, method, path, headers=None, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace"), dict(answer.getheaders())
        finally:
            connection.close()

    def shake(self, **headers):
        """The status with which the server takes a WebSocket."""
        wanted = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": f"127.0.0.1:{self.port}", **wanted}.items())
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as raw:
            raw.sendall(f"GET /ws HTTP/1.1\r\n{lines}\r\n".encode())
            return int(raw.recv(64).split()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("server") / "run"
    make_trace(path, steps=20, features=4, inputs=6, seal=False)
    logging.disable(logging.ERROR)
    found = Server(path)
    yield found
    found.close()
    logging.disable(logging.NOTSET)


def test_it_listens_on_this_machine_alone(server):
    bound = [each.getsockname()[0] for each in server.served.server._http._sockets.values()]
    assert bound == ["127.0.0.1"]


class TestPages:
    def test_without_the_token_there_is_none(self, server):
        for path in ("/", "/?token=guess", "/autoload.js", "/?bokeh-session-id=x"):
            status, text, _ = server.send("GET", path)
            assert status in (302, 400, 403, 404), path
            assert "<script" not in text, path

    def test_the_token_opens_it_and_stays_a_cookie_that_no_script_and_no_other_site_has(self, server):
        status, _, headers = server.send("GET", f"/?token={quote(server.token)}")
        assert status == 200
        assert "HttpOnly" in headers["Set-Cookie"]
        assert "SameSite=Strict" in headers["Set-Cookie"]

    def test_a_name_that_was_bound_anew_to_this_machine_has_no_cookie(self, server):
        """DNS rebinding: the browser takes evil.example for the server; its cookies are 127.0.0.1's, so it brings none."""
        status, text, _ = server.send("GET", "/", {"Host": f"evil.example:{server.port}"})
        assert status in (302, 403)
        assert server.token not in text


class TestSockets:
    def test_one_s_own_page_gets_one(self, server):
        assert server.shake(Origin=f"http://127.0.0.1:{server.port}", Cookie=server.cookie) == 101

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://evil.example:{port}"]
    )
    def test_another_site_s_gets_none_even_with_the_cookie(self, server, origin):
        assert server.shake(Origin=origin.format(port=server.port), Cookie=server.cookie) == 403

    def test_a_rebound_name_gets_none(self, server):
        """DNS rebinding: host and origin agree, so only the cookie, which the browser has for another name, tells."""
        host = f"evil.example:{server.port}"
        assert server.shake(Host=host, Origin=f"http://{host}") == 403

    def test_without_the_token_there_is_none(self, server):
        assert server.shake(Origin=f"http://127.0.0.1:{server.port}") != 101


def api(server, method, path, body=None, **headers):
    status, text, found = server.send(method, path, {"Authorization": f"Bearer {server.token}", **headers}, body)
    return status, json.loads(text), found


class TestApi:
    def test_every_endpoint_refuses_a_rebound_name_and_another_site(self, server):
        for path, operations in document()["paths"].items():
            for method in operations:
                filled = path.replace("{key}", "x")
                host = {"Host": f"evil.example:{server.port}"}
                assert api(server, method.upper(), filled, **host)[0] == 403
                assert api(server, method.upper(), filled, Origin="http://evil.example")[0] == 403

    def test_a_wrong_method_is_told_the_right_ones(self, server):
        for path, operations in document()["paths"].items():
            for method in {"get", "post", "put", "delete", "patch"} - set(operations):
                status, body, headers = api(server, method.upper(), path.replace("{key}", "x"))
                assert (status, set(body)) == (405, {"error", "detail"}), (method, path)
                assert headers["Allow"] == ", ".join(sorted(o.upper() for o in operations)), path

    def test_no_other_site_is_told_that_it_may_read(self, server):
        _, _, headers = api(server, "GET", "/debug/state")
        assert not [name for name in headers if name.lower().startswith("access-control")]
        status, _, headers = api(server, "OPTIONS", "/debug/state", Origin=f"http://127.0.0.1:{server.port}")
        assert status == 405
        assert not [name for name in headers if name.lower().startswith("access-control")]

    @pytest.mark.parametrize("path", ["/debug/state", "/"])
    def test_a_body_that_is_too_large_is_refused_before_it_is_read(self, server, path):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            raw.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode())
            assert raw.recv(64).split()[1:2] in ([b"400"], [b"413"], [])

    @pytest.mark.parametrize(
        "raw",
        [
            b"\x00\xff\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
            b"\x16\x03\x01\r\n\r\n",
        ],
    )
    def test_what_is_no_request_ends_nothing(self, server, raw):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(raw)
            assert b" 500 " not in connection.recv(200)
        assert api(server, "GET", "/debug/state")[0] == 200

    def test_text_that_is_none_is_a_bad_request(self, server):
        status, body, _ = api(server, "GET", "/debug/state?step=%ff")
        assert (status, set(body)) == (400, {"error", "detail"})
        assert "%s" not in body["detail"]


def test_no_answer_says_where_the_traces_lie(server, tmp_path_factory):
    """Of a damaged trace, too: its own errors name files, by their names."""
    root = str(tmp_path_factory.getbasetemp())
    asked = [
        "state?step=99",
        "state?run=other",
        "batch?step=99",
        "step_data/no",
        "cosine_matrix?source=x",
        "trajectories?metric=x",
    ]
    answers = [api(server, "GET", f"/debug/{path}")[1] for path in asked]
    path = tmp_path_factory.mktemp("damaged") / "run"
    make_trace(path, steps=20, features=4, inputs=6)
    other = Server(path)
    try:
        assert api(other, "GET", "/debug/batch?step=3")[0] == 200
        shutil.rmtree(path / "tensors.zarr")
        for table in (path / "metrics").glob("*.replay.parquet"):
            table.unlink()
        answers += [
            api(other, "GET", f"/debug/{p}")[1] for p in ("cosine_matrix?step=9&source=encoder.weight", "batch?step=4")
        ]
        (path / "trace.json").write_text("{")
        answers.append(api(other, "GET", "/debug/state")[1])
    finally:
        other.close()
    errors = [answer for answer in answers if "error" in answer]
    assert len(errors) >= len(asked) + 1, answers
    for answer in answers:
        assert root not in json.dumps(answer), answer
        assert "Traceback" not in json.dumps(answer)


def test_what_nobody_foresaw_says_nothing_of_it(server, monkeypatch):
    def fail(self):
        raise OSError("a secret")

    monkeypatch.setattr(Guarded, "run_asked", fail)
    status, body, _ = api(server, "GET", "/debug/state")
    assert (status, body["detail"]) == (500, "Internal Server Error")


def test_all_that_is_served_besides_pages_is_guarded():
    found = handlers(None, "token", set, lambda handler: "cookie")
    assert all(issubclass(handler, Guarded) for _, handler, _ in found)
