"""The JSON API of S4.8 on recorded runs, as handlers for Panel's own server; `apps.openapi` describes it. # S4.8

Every request must name this server as its Host, come from its own pages where it says an Origin, and bring the token
(`Authorization: Bearer`, `?token=`, or the page's cookie). Answers are JSON, refusals too:
{"error": kind, "detail": one line}. 401 no token, 403 foreign host or origin, 404 no such thing in this trace, 405
wrong method, 409 not possible with a run that is over, 413 too much for JSON, 422 a parameter that cannot be read.
Room: apps. May touch: reads the runs it is given; keeps a cursor and the watched features of each in memory.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import numpy as np
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler

from analysis.similarity import off_diagonal_stats
from apps.exports import FORMATS, encode
from apps.openapi import document
from apps.pilot import lacks, peeked
from apps.terminal import jsonable
from tracer.errors import (
    ControlError,
    MissingDataError,
    NameUnknownError,
    RewindError,
    StepError,
    TraceError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.runs import Runs

log = logging.getLogger(__name__)

MOST_NUMBERS: Final = 2_000_000
MOST_WATCHED: Final = 256
_FOLDERS = re.compile(r"(?<![\w.])/(?!debug/|export/)(?:[^\s/:'\"]+/)+")
"""Where files lie is nobody's business who asks over the network."""
_INTEGER = re.compile(r"-?[0-9]{1,15}")


@dataclass
class Place:
    """Where the API stands in a run: the step that is asked about by default, and the watched features."""

    step: int
    watched: tuple[int, ...] = ()


class Places:
    """The places of all runs."""

    def __init__(self) -> None:
        """Nobody has been anywhere yet."""
        self._places: dict[str, Place] = {}

    def of(self, run: Recorded) -> Place:
        """The place in `run`: its last step at first."""
        return self._places.setdefault(run.name, Place(run.last))


def handlers(
    runs: Runs, token: str, hosts: Callable[[], set[str]], cookie: Callable[[RequestHandler], str]
) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """The patterns for Tornado. `hosts` are the names, with port, of this server; `cookie` names the page's cookie."""
    given = {"runs": runs, "token": token, "hosts": hosts, "cookie": cookie, "places": Places()}
    table: list[tuple[str, type[RequestHandler]]] = [
        (r"/debug/openapi\.json", OpenApi),
        (r"/debug/(pause|resume)", Control),
        (r"/debug/step", Step),
        (r"/debug/state", State),
        (r"/debug/batch", BatchOf),
        (r"/debug/step_data/keys", Keys),
        (r"/debug/step_data/force_detail", Force),
        (r"/debug/step_data/(.+)", StepData),
        (r"/debug/cosine_matrix", Cosine),
        (r"/debug/watch", Watch),
        (r"/debug/trajectories", Trajectories),
        (r"/debug/trajectories/clear", Clear),
        (r"/debug(?:/.*)?", Nothing),
        (r"/export/([\w-]+)\.(\w+)", Download),
    ]
    return [(pattern, handler, given) for pattern, handler in table]


class Guarded(RequestHandler):
    """Checks who asks, reads parameters, answers in JSON."""

    def initialize(
        self,
        runs: Runs,
        token: str,
        hosts: Callable[[], set[str]],
        cookie: Callable[[RequestHandler], str],
        places: Places,
    ) -> None:
        """Take what `handlers` gives."""
        self.runs, self._token, self._hosts, self._cookie, self._places = runs, token, hosts, cookie, places

    def prepare(self) -> None:
        """Refuse foreign hosts and origins, and who has no token."""
        if self.request.host not in self._hosts():
            raise HTTPError(403, "this server does not go by that Host")
        origin = self.request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc not in self._hosts():
            raise HTTPError(403, "requests from that Origin are not taken")
        if not any(compare_digest(given.encode(), self._token.encode()) for given in self._tokens()):
            raise HTTPError(401, "the token is missing or wrong: it is in the address that `rewind app` printed")

    def _tokens(self) -> list[str]:
        bearer = self.request.headers.get("Authorization", "")
        return [
            bearer.removeprefix("Bearer ").strip(),
            self.get_query_argument("token", ""),
            self.get_cookie(self._cookie(self)) or "",
        ]

    # -- parameters ----------------------------------------------------------------------------------------------------

    def run_asked(self) -> Recorded:
        """The run of `?run=`, the first one by default."""
        run = self.runs.open(self.get_query_argument("run", self.runs.names[0]))
        # A run that is over may have grown, too: before it died, or because it was resumed.
        if is_live(run) or run.trace.refresh():
            run.refresh()
        return run

    async def run_in_full(self) -> Recorded:
        """The run of `?run=`; what the trace lacks of a paused run's last step is asked of its process, once."""
        run = self.run_asked()
        if not run.empty and not run.took(run.last) and run.trace.status()["status"] == "paused":
            step, lacking = run.last, lacks(run, run.last)
            ask = partial(peeked, self.runs.steering, run.trace.path, step, lacking)
            with suppress(ControlError, UsageError):  # It has gone on meanwhile: its trace is all there is.
                found = await IOLoop.current().run_in_executor(None, ask) if lacking else None
                if found is not None and not found.too_large:
                    run.take(found)
        return run

    async def steer(self, run: Recorded, verb: Callable[[Path], Any]) -> None:
        """Tell the live run; answer with its state and that of its newest step. 409 where it refuses or is over."""
        try:
            live = await IOLoop.current().run_in_executor(None, verb, run.trace.path)
        except (ControlError, UsageError) as error:
            raise HTTPError(409, str(error)) from None
        run.refresh()
        place = self._places.of(run)
        place.step = run.last
        self.answer({**state_of(run, place.step), "live": live})

    def integer(self, name: str, otherwise: int | None = None) -> int:
        """A whole number of the query; 422 for anything else, and where it is missing and needed."""
        text = self.get_query_argument(name, None, strip=False)
        if text is None and otherwise is not None:
            return otherwise
        if text is None or not _INTEGER.fullmatch(text):
            raise HTTPError(422, f"{name} must be a whole number")
        return int(text)

    def step_asked(self, run: Recorded) -> int:
        """The step of `?step=`, the API's own place by default. Raise StepError where there is none."""
        return run.check(self.integer("step", self._places.of(run).step))

    def layer_asked(self, run: Recorded) -> str:
        """The layer of `?layer=`; the first of the run by default."""
        layer = self.get_query_argument("layer", None)
        if layer is None:
            layer = "bcl" if "bcl" in run.layers else next(iter(run.layers), "")
        if layer not in run.layers:
            raise NameUnknownError(f"no layer {layer!r}; there are: {', '.join(run.layers) or 'none'}")
        return layer

    def body(self) -> dict[str, Any]:
        """The request's JSON object; empty where there is no body."""
        if not self.request.body:
            return {}
        try:
            found = json.loads(self.request.body)
        except (ValueError, RecursionError):
            raise HTTPError(422, "the body is not JSON") from None
        if not isinstance(found, dict):
            raise HTTPError(422, "the body must be a JSON object")
        return found

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(self, value: dict[str, Any]) -> None:
        """Send `value` as JSON: NaN and the infinities as strings."""
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(jsonable(value), ensure_ascii=False))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say what is wrong, as JSON."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        status, kind = status_of(error) or (status_code, "HTTPError")
        self.set_status(status)
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if status == 405:
            self.set_header("Allow", ", ".join(self._methods()))
        self.answer({"error": kind, "detail": self._detail(error)})

    def _methods(self) -> list[str]:
        own = ((name, getattr(type(self), name.lower())) for name in self.SUPPORTED_METHODS)
        return sorted(name for name, method in own if method is not RequestHandler._unimplemented_method)

    def _detail(self, error: BaseException | None) -> str:
        """What is said of an error: of ours and Tornado's the message, without the folders in it; of others nothing."""
        told = error.get_message() if isinstance(error, HTTPError) else str(error)
        said = told or "" if isinstance(error, HTTPError | RewindError) else ""
        return " ".join((_FOLDERS.sub("", said) or self._reason).split())

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Refusals are no errors of the server."""
        if status_of(value) is None and not isinstance(value, HTTPError):
            log.error("%s %s", self.request.method, self.request.path, exc_info=(typ, value, tb))  # type: ignore[arg-type]


def status_of(error: BaseException | None) -> tuple[int, str] | None:
    """The status and the name of an error of ours; None for others."""
    if not isinstance(error, RewindError):
        return None
    missing = (StepError, NameUnknownError, MissingDataError)
    status = 404 if isinstance(error, missing) else 422 if isinstance(error, UsageError) else 409
    return (404 if isinstance(error, TraceError) and status == 409 else status), type(error).__name__


def as_lists(array: NDArray[Any]) -> Any:
    """An array as nested lists. Raise HTTPError 413 where it has more numbers than JSON should carry."""
    if array.size > MOST_NUMBERS:
        raise HTTPError(413, f"{array.size} numbers are too many for JSON: open the trace's Zarr store instead")
    return array.tolist()


class Nothing(Guarded):
    """Any other address under /debug."""

    def prepare(self) -> None:
        """404, to those who may ask."""
        super().prepare()
        raise HTTPError(404, "there is no such endpoint: see /debug/openapi.json")


class OpenApi(Guarded):
    """GET /debug/openapi.json."""

    def get(self) -> None:
        """The description of all this."""
        self.answer(document())


class Control(Guarded):
    """POST /debug/pause, /debug/resume: of a live run only."""

    async def post(self, verb: str) -> None:
        """Answer as /debug/state does, once it is so; 409: a recorded run is over."""
        run = self.run_asked()
        if not is_live(run):
            raise HTTPError(
                409, f"{run.name} is a recorded run: there is nothing to {verb}; /debug/step moves through it"
            )
        await self.steer(run, getattr(self.runs.steering, verb))


class Step(Guarded):
    """POST /debug/step: one step on in the record, or `{"steps": n}`, back where negative; a paused live run makes steps."""

    async def post(self) -> None:
        """Move the place that the other endpoints take by default."""
        run = self.run_asked()
        body = self.body()
        steps = body.get("steps", 1)
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise HTTPError(422, "steps must be a whole number")
        if is_live(run):
            await self.steer(run, partial(self.runs.steering.step, steps=steps))
            return
        place = self._places.of(run)
        if run.empty or not run.first <= place.step + steps <= run.last:
            raise HTTPError(409, f"the record goes from step {run.first} to {run.last}, and this is {place.step}")
        place.step += steps
        self.answer(state_of(run, place.step))


class State(Guarded):
    """GET /debug/state."""

    def get(self) -> None:
        """Where we are, and what the step recorded."""
        run = self.run_asked()
        step = self.integer("step", self._places.of(run).step)
        found = state_of(run, run.first if run.empty else run.check(step))
        self.answer({**found, "runs": self.runs.names})


def is_live(run: Recorded) -> bool:
    """Whether the run goes on."""
    return run.trace.status()["status"] in ("running", "paused")


def state_of(run: Recorded, k: int) -> dict[str, Any]:
    """What /debug/state says of step `k`."""
    status = run.trace.status()["status"]
    run.reread()
    return {
        "run": run.name,
        "mode": "live" if status in ("running", "paused") else "recorded",
        "status": status,
        "paused": status != "running",
        "step": k,
        "first_step": run.first,
        "last_step": None if run.empty else run.last,
        "scalars": run.scalars_at(k),
        "fingerprint": None if run.empty else run.trace.fingerprint(k),
        "verdict": run.verdicts.get(k),
        "layers": run.layers,
        "sources": run.sources,
    }


class BatchOf(Guarded):
    """GET /debug/batch."""

    async def get(self) -> None:
        """The batch of a step: labels, values per sample, and the pixels 0..255 unless `images=false`."""
        run = await self.run_in_full()
        k = self.step_asked(run)
        batch = run.batch(k)
        wanted = self.get_query_argument("images", "true")
        if wanted not in ("true", "false"):
            raise HTTPError(422, "images must be true or false")
        shown = batch.images if wanted == "true" else None
        self.answer(
            {
                "step": k,
                "loss": run.scalars_at(k).get("loss"),
                "size": batch.size,
                "labels": batch.labels,
                "pixels_not_finite": batch.bad,
                "image_shape": None if batch.images is None else list(batch.images.shape[1:]),
                "images": None if shown is None else as_lists(shown),
                "per_sample": run.per_sample(k),
                "text": batch.text or None,
            }
        )


class Keys(Guarded):
    """GET /debug/step_data/keys."""

    async def get(self) -> None:
        """What was captured at a step."""
        run = await self.run_in_full()
        k = self.step_asked(run)
        captures = run.captured(k)
        self.answer({"step": k, "keys": [c["key"] for c in captures], "captures": captures})


class StepData(Guarded):
    """GET /debug/step_data/{key}."""

    async def get(self, key: str) -> None:
        """One capture."""
        run = await self.run_in_full()
        k = self.step_asked(run)
        value = run.capture(key, k)
        facts = {"step": k, "key": key, "dtype": value.dtype.name, "shape": list(value.shape)}
        self.answer({**facts, "value": as_lists(value)})


class Force(Guarded):
    """GET /debug/step_data/force_detail?feature=."""

    async def get(self) -> None:
        """The four pictures of one feature, [F] each, their norms, and the cosine of the two forces."""
        run = await self.run_in_full()
        k, layer, feature = self.step_asked(run), self.layer_asked(run), self.integer("feature")
        found = run.force_detail(layer, k, feature)
        parts = {n: getattr(found, n) for n in ("weight", "grad_delta", "som_delta", "combined")}
        norms = {n: float(np.linalg.norm(v)) for n, v in parts.items()}
        facts = {"step": k, "layer": layer, "feature": feature, "cosine": found.cosine, "norms": norms}
        self.answer({**facts, **{n: as_lists(v) for n, v in parts.items()}})


class Cosine(Guarded):
    """GET /debug/cosine_matrix?source=."""

    async def get(self) -> None:
        """The pairwise cosines of a source at a step; what is there is in /debug/state's `sources`."""
        run = await self.run_in_full()
        k = self.step_asked(run)
        source = self.get_query_argument("source", None)
        if source is None:
            raise HTTPError(422, f"source is needed: one of {', '.join(run.sources) or 'none'}")
        matrix, _ = run.cosine(source, k)
        stats = vars(off_diagonal_stats(matrix))
        self.answer({"step": k, "source": source, "off_diagonal": stats, "matrix": as_lists(matrix)})


class Watch(Guarded):
    """GET, POST /debug/watch."""

    def get(self) -> None:
        """The watched features."""
        self.answer({"features": self._places.of(self.run_asked()).watched})

    def post(self) -> None:
        """Watch other features: `{"features": [0, 5]}`."""
        run = self.run_asked()
        self._places.of(run).watched = features_of(self.body().get("features"))
        self.get()


def features_of(value: Any) -> tuple[int, ...]:
    """A JSON list of features. Raise HTTPError 422."""
    plain = isinstance(value, list) and all(isinstance(f, int) and not isinstance(f, bool) for f in value)
    if not plain or len(value) > MOST_WATCHED or not all(0 <= f < 2**31 for f in value):
        raise HTTPError(422, f"features must be a list of at most {MOST_WATCHED} whole numbers from 0")
    return tuple(dict.fromkeys(value))


class Trajectories(Guarded):
    """GET /debug/trajectories."""

    def get(self) -> None:
        """One metric of the watched features, or of `?features=0,5`, over all steps; and when they died."""
        run = self.run_asked()
        layer = self.layer_asked(run)
        watched = self._features(run)
        metric = self.get_query_argument("metric", "win_rate")
        steps, values = run.trajectory(layer, metric, watched)
        first, last = self.integer("first", run.first), self.integer("last", run.last)
        inside = (steps >= first) & (steps <= last)
        lines = [{"feature": f, "values": as_lists(values[inside, i])} for i, f in enumerate(watched)]
        deaths = dict(zip(map(str, watched), run.deaths(layer, watched), strict=True))
        facts = {"layer": layer, "metric": metric, "steps": as_lists(steps[inside])}
        self.answer({**facts, "trajectories": lines, "died_at": deaths})

    def _features(self, run: Recorded) -> Sequence[int]:
        text = self.get_query_argument("features", None, strip=False)
        if text is None:
            return self._places.of(run).watched
        words = text.split(",") if text else []
        if not all(word.isascii() and word.isdigit() and len(word) < 16 for word in words):
            raise HTTPError(422, "features must be whole numbers with commas between them")
        return features_of([int(word) for word in words])


class Clear(Guarded):
    """POST /debug/trajectories/clear."""

    def post(self) -> None:
        """Watch nothing. A record keeps all its trajectories: there is nothing else to clear."""
        run = self.run_asked()
        self._places.of(run).watched = ()
        self.answer({"features": []})


class Download(Guarded):
    """GET /export/{key}.{format}: what a page offered."""

    def get(self, key: str, form: str) -> None:
        """The file."""
        found = self.runs.exports.take(key)
        if found is None or form not in FORMATS:
            raise HTTPError(404, "this download is gone: ask for it again")
        name, columns = found
        plain = re.sub(r"[^\w.-]+", "_", name)
        self.set_header("Content-Type", FORMATS[form])
        self.set_header("Content-Disposition", f'attachment; filename="{plain}.{form}"')
        self.finish(encode(columns, form))
