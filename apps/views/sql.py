"""The tab SQL: questions to the trace, read-only by construction; a result with a step column is drawn (C4, S4.9).

Room: apps.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import duckdb
import numpy as np
import panel as pn
from bokeh.events import Tap
from bokeh.models import ColumnDataSource

from analysis.metrics import downsample
from analysis.questions import PRESETS, ask
from apps.surfaces import Console
from apps.views import figures
from apps.views.options import Options
from tracer.errors import RewindError
from tracer.index import worded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.views.view import Host

SHOWN: Final = 1000
MOST: Final = 200_000
SECONDS: Final = 20.0
FINDINGS: Final = ("cosine_of_weights", "cosine_of_targets", "fight", "agree")
"""Names of `apps.findings.findings` that the examples ask for."""
_EXACT: Final = 2**53
FIRST: Final = "select step, epoch, loss, lr, grad_norm from steps order by loss desc limit 20"


@dataclass(frozen=True)
class Answer:
    """The rows of a query: `columns` as arrays of one length, NULL as None."""

    columns: dict[str, NDArray[Any]]
    rows: int
    seconds: float
    cut: bool


def answer(run: Recorded, query: str) -> Answer:
    """Ask `run`. Raise UsageError in DuckDB's first words where the query is wrong."""
    started = time.perf_counter()
    try:
        with run.trace.sql_within(SECONDS):
            relation = run.trace.sql(query)
            names = _distinct(relation.columns)
            rows = relation.limit(MOST).fetchall()
    except duckdb.Error as error:
        raise worded(error, run.trace.path) from None
    columns = {n: np.array([r[i] for r in rows], dtype=object) for i, n in enumerate(names)}
    return Answer(columns, len(rows), time.perf_counter() - started, len(rows) == MOST)


def answer_frame(found: Answer, hint: str = "") -> dict[str, Any]:
    """What the page shows of an answer: its first thousand rows; `hint` is said where it has none."""
    names = list(found.columns)
    rows = [[_shown(v) for v in row] for row in zip(*(found.columns[n][:SHOWN] for n in names), strict=True)]
    note = f"{found.rows} row{'s' * (found.rows != 1)} in {found.seconds * 1000:.0f} ms"
    if not found.rows and hint:
        note += f"; {hint}"
    if found.rows > SHOWN:
        note += f"; the first {SHOWN} are shown, an export has {'the first ' if found.cut else ''}all of them"
    return {"columns": names, "rows": rows, "note": note}


def _shown(value: Any) -> Any:
    """A value as a page can hold it: its numbers have 53 bits, longer ones are text."""
    return str(value) if isinstance(value, int) and abs(value) > _EXACT else value


def hint(query: str, run: Recorded) -> str:
    """Why a question may have no answer yet: it asks for what only a hindsight run works out."""
    wanted = [name for name in FINDINGS if f"'{name}'" in query]
    if not wanted:
        return ""
    return f"these are worked out by: rewind hindsight {shlex.quote(str(run.trace.path))} apps.findings:findings"


def drawable(found: Answer) -> dict[str, NDArray[np.float64]]:
    """The numeric columns of an answer that has a `step` column, in the order of the steps; empty without."""
    if "step" not in found.columns or found.rows < 2:
        return {}
    numbers = {n: _floats(v) for n, v in found.columns.items() if _numeric(v)}
    if "step" not in numbers:
        return {}
    order = np.argsort(numbers["step"], kind="stable")
    lines = [n for n in numbers if n not in ("step", "session", "feature", "epoch", "batch_index")][:8]
    return {n: numbers[n][order] for n in ("step", *lines)} if lines else {}


def examples(layer: str, feature: int, step: int) -> dict[str, str]:
    """S4.9's questions and others, with what is chosen put in."""
    return {name.replace("_", " "): ask(name, layer=layer or "bcl", feature=feature, step=step) for name in PRESETS}


def _distinct(names: list[str]) -> list[str]:
    return [n if names.index(n) == i else f"{n}_{i}" for i, n in enumerate(names)]


def _numeric(values: NDArray[Any]) -> bool:
    known = [v for v in values if v is not None]
    return bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def _floats(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in values], np.float64)


class SqlView:
    """The console and the chart of the last answer."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._console = Console(self._heard)
        self._place = pn.Column(sizing_mode="stretch_width", margin=(12, 0, 0, 0))
        self.root = pn.Column(self._console, self._place, sizing_mode="stretch_width")
        self._shown: tuple[Any, ...] = ()
        self._schema_of: Recorded | None = None
        self._answered: Recorded | None = None
        self._answer: Answer | None = None
        self._options = Options(host, "sql", query=FIRST)
        self._query = FIRST
        self._wanted, self._there, self._asked = FIRST, False, 0
        self._plot: Any = None

    def show(self) -> None:
        """Offer the schema and the examples for what is chosen."""
        run, chosen = self._host.run, self._host.selection
        place = (run, chosen.layer, chosen.feature, chosen.step)
        wanted = self._options["query"]
        if self._there and wanted != self._wanted:
            self._wanted = wanted
            self._ask(wanted)
        elif self._there and self._answered is not run:
            self._ask(self._query, unasked=True)
        if place == self._shown:
            return
        self._shown = place
        header: dict[str, Any] = {"examples": examples(chosen.layer, chosen.feature, chosen.step)}
        if run is not self._schema_of:
            self._schema_of, header["schema"] = run, run.trace.schema()
        self._console.send(header)

    def restyle(self) -> None:
        """Take on the page's colours."""
        figures.restyle([self._plot] if self._plot is not None else [], dark=self._host.dark)

    def export(self) -> dict[str, NDArray[Any]]:
        """The last answer."""
        return self._answer.columns if self._answer is not None else {}

    def python(self) -> str:
        """How a notebook asks the same."""
        return f'trace.sql("""{self._query}""").df()'

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("do") == "ready":
            self._shown, self._schema_of, self._answered, self._there = (), None, None, True
            self.show()
        elif message.get("do") == "row":
            found = {n: message.get(n) for n in ("step", "feature")}
            self._host.choose(**{n: int(v) for n, v in found.items() if isinstance(v, int | float)})
        elif message.get("do") == "sql":
            query, before = str(message.get("query", ""))[:100_000], self._wanted
            self._options.set("query", query)
            if self._wanted == before:  # The same once more, or one that is too long for a URL.
                self._ask(query)

    def _ask(self, query: str, *, unasked: bool = False) -> None:
        self._query, self._answered = query, self._host.run
        self._console.tell({"query": query, "unasked": unasked})
        self._asked += 1
        number = self._asked
        # What waits behind a slow question, and has been asked past, is not asked any more.
        self._host.later(lambda twin: answer(twin, query) if number == self._asked else None, self._arrived)

    def _arrived(self, found: Answer | RewindError | None) -> None:
        if found is None:
            return
        if isinstance(found, RewindError):
            self._console.tell({"problem": str(found)})
            return
        self._answer = found
        self._console.tell(answer_frame(found, hint(self._query, self._host.run)))
        lines = drawable(found)
        self._place[:] = [figures.card(self._draw(lines))] if lines else []

    def _draw(self, lines: dict[str, NDArray[np.float64]]) -> Any:
        self._plot = plot = figures.chart("The answer over the steps", "step", "", height=240)
        x = lines["step"]
        for i, (name, values) in enumerate((n, v) for n, v in lines.items() if n != "step"):
            chosen = downsample(values, 2000)
            hue, dash = figures.colour(i)
            source = ColumnDataSource({"x": x[chosen], "y": values[chosen]})
            line = plot.line("x", "y", source=source, color=hue, line_dash=dash, line_width=1.8, legend_label=name)
            plot.add_tools(figures.hover(("step", "@x"), (name, "@y{%.5g}"), renderers=[line]))
        plot.legend.click_policy = "hide"
        plot.add_layout(plot.legend[0], "right")
        plot.on_event(Tap, lambda event: event.x is not None and self._host.choose(step=round(event.x)))
        self.restyle()
        return plot
