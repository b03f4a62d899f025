"""The JSON API on recorded runs: what it answers, whom it refuses, and that no request breaks it. # S4.8"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.web import Application

from apps.api import handlers
from apps.openapi import document
from apps.runs import Runs
from tests.tracer.live_run import LiveRun
from tests.tracer.synthetic import make_trace

TOKEN = "the token"


class Api:
    """A server in a thread, and a client that sends what it is told."""

    def __init__(self, *paths):
        self.runs = Runs(paths)
        started = threading.Event()
        threading.Thread(target=self._serve, args=(started,), daemon=True).start()
        assert started.wait(10)

    def _serve(self, started):
        async def main():
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            self.hosts = set()
            application = Application(handlers(self.runs, TOKEN, lambda: self.hosts, lambda _: "rewind"))
            server = application.listen(0, "127.0.0.1")
            self.port = next(iter(server._sockets.values())).getsockname()[1]
            self.hosts.add(f"127.0.0.1:{self.port}")
            started.set()
            await self._stop.wait()
            server.stop()

        asyncio.run(main())

    def send(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def get(self, path, **query):
        return self.send("GET", f"/debug/{path}" + (f"?{urlencode(query)}" if query else ""))

    def post(self, path, body=None):
        return self.send("POST", f"/debug/{path}", None if body is None else json.dumps(body))

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return make_trace(tmp_path_factory.mktemp("api") / "run", steps=60, features=8, inputs=64, seal=False, nan_at=7)


@pytest.fixture(scope="module")
def api(truth, tmp_path_factory):
    bare = tmp_path_factory.mktemp("api") / "bare"
    make_trace(bare, steps=3, features=4, inputs=6, weights=False, captures=False, seal=False, seed=1)
    server = Api(truth.path, bare)
    yield server
    server.close()


def test_state_says_where_we_are(api, truth):
    status, state = api.get("state", step=5)
    assert (status, state["step"], state["last_step"], state["mode"]) == (200, 5, 59, "recorded")
    assert state["scalars"]["loss"] == truth.loss[5]
    assert api.get("state", step=7)[1]["scalars"]["loss"] == "NaN"  # S1.2


def test_the_batch_is_the_recorded_one(api, truth):
    batch = api.get("batch", step=3)[1]
    assert np.array_equal(
        np.array(batch["images"]).reshape(32, 64), np.clip(truth.batches[3] * 255, 0, 255).round().astype(int)
    )
    assert batch["labels"][:3] == [96, 97, 98]
    assert api.get("batch", step=3, images="false")[1]["images"] is None


def test_step_data_is_listed_and_fetched_by_key(api, truth):  # S4.3
    keys = api.get("step_data/keys", step=4)[1]["keys"]
    assert "bcl/win_rate" in keys
    for key in keys:
        status, data = api.get(f"step_data/{quote(key)}", step=4)
        assert status == 200
        assert np.array_equal(np.array(data["value"], np.float32), truth.captures[key, 4])


def test_cosine_matrix_of_a_capture(api, truth):  # S4.6
    found = api.get("cosine_matrix", source="bcl/som_targets", step=2)[1]
    targets = truth.captures["bcl/som_targets", 2].astype(float)
    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    assert np.allclose(found["matrix"], unit @ unit.T)
    assert found["off_diagonal"]["pairs"] == 56


def test_trajectories_of_the_watched(api, truth):  # S4.7
    assert api.post("watch", {"features": [1, 5, 1]}) == (200, {"features": [1, 5]})
    found = api.get("trajectories", metric="win_rate", first=10, last=12)[1]
    assert found["steps"] == [10, 11, 12]
    assert [line["feature"] for line in found["trajectories"]] == [1, 5]
    wanted = [float(truth.captures["bcl/win_rate", k][5]) for k in (10, 11, 12)]
    assert found["trajectories"][1]["values"] == wanted
    assert api.post("trajectories/clear") == (200, {"features": []})
    assert api.get("watch")[1] == {"features": []}


def test_stepping_moves_through_the_record_and_stops_at_its_ends(api):
    _, before = api.get("state")
    assert api.post("step", {"steps": -9})[1]["step"] == before["step"] - 9
    assert api.get("state")[1]["step"] == before["step"] - 9
    assert api.post("step", {"steps": 9})[1]["step"] == before["step"]
    assert api.post("step", {"steps": 10**9})[0] == 409
    assert api.post("step", {"steps": "x"})[0] == 422


@pytest.mark.parametrize(
    ("status", "path"),
    [
        (404, "state?step=60"),
        (404, "state?run=other"),
        (404, "step_data/no/such"),
        (404, "cosine_matrix?source=x"),
        (404, "step_data/force_detail?feature=3"),  # the synthetic run captures no som_rate
        (404, "trajectories?metric=x"),
        (404, "nothing"),
        (404, "batch?run=bare&step=3"),
        (404, "trajectories?run=bare"),
        (422, "state?step=x"),
        (422, "state?step=1e3"),
        (422, "state?step=7%C2%85"),  # what Tornado would strip
        (422, "state?step=%207"),
        (422, "state?step=%EF%BC%97"),  # a 7, as wide as a sign
        (422, "trajectories?features=1%20"),
        (422, "cosine_matrix"),
        (422, "step_data/force_detail"),
        (422, "trajectories?features=1,x"),
        (422, "batch?images=maybe"),
        (405, "pause"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(api, status, path):
    found, body = api.send("GET", f"/debug/{path}")
    assert (found, bool(body["detail"])) == (status, True), body


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_recorded_run_cannot_be_paused(api, verb):
    assert api.post(verb)[0] == 409


def test_who_may_ask(api):
    bare = {"Authorization": ""}
    assert api.send("GET", "/debug/state", headers=bare)[0] == 401
    assert api.send("GET", "/debug/state", headers={"Authorization": "Bearer no"})[0] == 401
    assert api.send("GET", f"/debug/state?token={quote(TOKEN)}", headers=bare)[0] == 200
    assert api.send("GET", "/debug/state", headers={"Host": "evil.example"})[0] == 403
    assert api.send("GET", "/debug/state", headers={"Origin": "http://evil.example"})[0] == 403
    assert api.send("GET", "/debug/state", headers={"Origin": "null"})[0] == 403
    assert api.send("GET", "/debug/state", headers={"Origin": f"http://127.0.0.1:{api.port}"})[0] == 200


def test_the_description_names_every_endpoint(api):
    status, described = api.get("openapi.json")
    assert (status, described) == (200, document())
    for path, operations in described["paths"].items():
        for method in operations:
            filled = path.replace("{key}", "bcl/win_rate")
            assert api.send(method.upper(), filled, headers={"Authorization": ""})[0] == 401


OPERATIONS = [(p, m, o) for p, ms in document()["paths"].items() for m, o in ms.items()]
VALUES = st.one_of(
    st.integers().map(str), st.text(max_size=20), st.sampled_from(["0", "5", "bcl", "run", "true", "0,1"])
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_request_breaks_it(api, data):
    path, method, operation = data.draw(st.sampled_from(OPERATIONS))
    query = {
        p["name"]: data.draw(VALUES) for p in operation["parameters"] if p["in"] == "query" and data.draw(st.booleans())
    }
    body = None
    if "requestBody" in operation:
        named = st.fixed_dictionaries({}, optional=dict.fromkeys(["features", "steps"], JSON))
        body = data.draw(st.one_of(named.map(json.dumps), JSON.map(json.dumps), st.binary(max_size=20)))
    filled = path.replace("{key}", quote(data.draw(st.text(min_size=1, max_size=12)), safe=""))
    status, answer = api.send(method.upper(), f"{filled}?{urlencode(query, errors='surrogatepass')}", body)
    known = {int(code) for code in operation["responses"]} | {400, 404}
    assert status in known, (status, answer)
    assert status == 200 or set(answer) == {"error", "detail"}


def test_a_paused_run_is_asked_for_what_its_trace_lacks(tmp_path):  # S4.1 S4.8
    with LiveRun(tmp_path / "t", "--detail", "metrics", "--every", "10", "--pause-at", "3") as run:
        run.until_status("paused")
        server = Api(run.path)
        try:
            assert server.get("batch")[0] == 200
            assert server.get("batch")[1]["text"].startswith("0: float32 [4, 6]")
            assert server.get("batch", step=1)[0] == 404
            assert server.get("step_data/keys")[1]["keys"] == ["layer/output"]
            assert len(server.get("step_data/layer%2Foutput")[1]["value"]) == 8
            assert server.post("step", {"steps": 2})[1]["step"] == 4
            assert server.get("batch")[1]["step"] == 4
        finally:
            server.close()
            server.runs.close()
