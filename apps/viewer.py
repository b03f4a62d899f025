"""One page of the app: what is chosen, the tabs, and what happens when the page says something.

Only the tab that is seen is brought up to date. A step is answered by exactly one `state` frame, which the page takes
as the sign that it may ask for the next.
Room: apps. May touch: the traces it shows, a thread for slow work.
"""

from __future__ import annotations

import logging
import re
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn

from analysis.metrics import downsample
from apps.exports import FORMATS
from apps.following import BEAT, Following
from apps.memory import give_back_later
from apps.selection import TABS, History, Selection, from_query
from apps.surfaces import Shell
from apps.views import TITLES, make_view
from tracer.errors import RewindError

if TYPE_CHECKING:
    from collections.abc import Callable

    from apps.family import Relative
    from apps.lookout import Found
    from apps.recorded import Recorded
    from apps.runs import Runs
    from apps.views.view import View

log = logging.getLogger(__name__)
_STILL = 5.0
"""Seconds without a change after which what was freed goes back to the system."""
_STEP = re.compile(r"(^|[?&])step=\d+")


class Viewer:
    """A page. `root` is what Panel serves."""

    def __init__(self, runs: Runs, query: str = "") -> None:
        """Open on what `query` (of the URL) says, else on the newest run's first step, or its newest where it goes on."""
        self._runs = runs
        runs.look()
        self.dark = False
        self.room = 800
        name = from_query(query, Selection()).run
        self.run: Recorded = runs.open(name) if name in runs.names else runs.open(runs.names[0])
        runs.pulse(self.run).look(now=True)
        self._history = History(self._whole(from_query(query, self._beginning())))
        self._views: dict[str, View] = {}
        self._problem = ""
        self._shell = Shell(self._heard)
        self._body = pn.Column(sizing_mode="stretch_width", margin=(12, 16, 24, 16))
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False
        self._moved: float | None = None
        self._marked: Any = None
        self._document = pn.state.curdoc
        self.following = Following(self, runs, self._turn)
        self.root = pn.Column(self._shell, self._body, sizing_mode="stretch_width")
        self._begin(follow=not _STEP.search(query))
        if self._document is not None:
            self._document.add_periodic_callback(beating(weakref.ref(self)), int(BEAT * 1000))

    # -- what is chosen ------------------------------------------------------------------------------------------------

    @property
    def selection(self) -> Selection:
        """What is chosen."""
        return self._history.now

    def _beginning(self) -> Selection:
        run = self.run
        layer = "bcl" if "bcl" in run.layers else next(iter(run.rooms), "")
        return Selection(run=run.name, step=run.first, layer=layer)

    def _whole(self, wanted: Selection) -> Selection:
        """What is wanted, with everything put where this run has it."""
        run = self.run
        layer = wanted.layer if wanted.layer in run.rooms else self._beginning().layer
        step = min(max(wanted.step, run.first), run.last)
        return wanted.at(run=run.name, step=step, layer=layer)

    def choose(self, **change: Any) -> None:
        """Choose something else; what is no choice at all is let go."""
        wanted = self.selection
        feature = change.pop("feature", None)
        if isinstance(feature, int) and not isinstance(feature, bool) and feature >= 0:
            wanted = wanted.with_feature(feature)
        known = {n: v for n, v in change.items() if isinstance(v, type(getattr(wanted, n, None)))}
        self.following.wanted &= "step" not in known
        self._history.go(self._whole(wanted.at(**known)))
        self.show()

    def others(self) -> list[str]:
        """The names of the other runs."""
        return [name for name in self._runs.names if name != self.run.name]

    def opened(self, names: list[str]) -> list[Recorded]:
        """Runs by name; those that cannot be opened are left out."""
        found = []
        for name in names:
            with suppress(RewindError):
                found.append(self._runs.open(name))
        return found

    def relatives(self) -> list[Relative]:
        """The parent and the branches of the run on show, among the other runs."""
        return self._runs.relatives(self.run.name)

    # -- showing -------------------------------------------------------------------------------------------------------

    def _begin(self, *, follow: bool = True) -> None:
        run = self.run
        self._views = {}
        self.following.begin(wanted=follow)
        if self.following.on:
            self._go_along()
        self._shell.send(
            {
                "kind": "begin",
                "runs": self._runs.listed(),
                "proof": self._runs.proof,
                "run": run.name,
                "first": run.first,
                "last": run.last,
                "step": self.selection.step,
                "status": self.following.pulse.status,
                "live": self.following.pulse.live,
                "following": self.following.on,
                "tabs": [{"name": name, "title": TITLES[name]} for name in TABS],
                **self._track(),
            }
        )

    def _mark(self) -> None:
        """Verdicts that came since, from here or from another process, are marked on the track."""
        self.run.reread()
        if not self.live and self.run.marks is not self._marked:
            self._shell.tell({"kind": "track", **self._track()})

    def _track(self) -> dict[str, Any]:
        self._marked = self.run.marks
        return track(self.run, sorted({other.at_step for other in self.relatives()}))

    def _go_along(self) -> None:
        """Be at the newest step; that is no change of view that one would undo."""
        self._history.now = self._whole(self.selection.at(step=self.run.last))

    def redraw(self) -> None:
        """A live run has grown: show what is new, where one follows it at its newest step."""
        if self.following.on:
            self._go_along()
        self._shell.tell({"kind": "track", **self._track()})
        grow = getattr(self._views.get(self.selection.tab), "grow", None)
        if grow is not None:
            self._guarded(grow)
        self.show(push=self.following.pushed())

    def tell(self, frame: dict[str, Any]) -> None:
        """Tell the page's frame."""
        self._shell.tell(frame)

    def show(self, ack: int | None = None, push: int | None = None) -> None:
        """Bring the tab that is seen up to date, then say so: all in one message."""
        self._moved = time.monotonic()
        self._problem = "This trace has no steps yet." if self.run.empty else ""
        with pn.io.hold():
            self._guarded(self._mark)
            self._guarded(self._show_tab)
            self._shell.tell({**self._state(ack), "push": push})

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except RewindError as error:
            self._problem = str(error)
        except Exception as error:
            # A mistake in one tab must not stop the scrubber: the page would wait for this answer for ever.
            log.exception("the tab %s failed at step %d", self.selection.tab, self.selection.step)
            self._problem = f"this tab failed, which is a bug of Rewind: {type(error).__name__}: {error}"

    def _show_tab(self) -> None:
        view = self._view(self.selection.tab)
        if self.run.empty:
            return
        with pn.io.hold():
            view.show()
        if list(self._body) != [view.root]:
            self._body[:] = [view.root]

    def _state(self, ack: int | None) -> dict[str, Any]:
        chosen = self.selection
        return {
            "kind": "state",
            "ack": ack,
            "step": chosen.step,
            "tab": chosen.tab,
            "facts": facts(self.run, chosen.step),
            "undo": self._history.can_undo,
            "redo": self._history.can_redo,
            "query": _STEP.sub(r"\1step=live", chosen.query()) if self.following.on else chosen.query(),
            "following": self.following.on,
            "python": self._python(),
            "problem": self._problem,
        }

    def _python(self) -> str:
        """The few lines that get what is shown in a notebook."""
        view = self._views.get(self.selection.tab)
        own = f"trace.batch({self.selection.step})"
        with suppress(RewindError):  # Of what there is not, the batch is the next best.
            own = getattr(view, "python", lambda: own)()
        return f"import tracer\n\ntrace = tracer.open_trace({str(self.run.trace.path)!r})\n{own}\n"

    def _view(self, tab: str) -> View:
        if tab not in self._views:
            self._views[tab] = make_view(tab, self)
            self._views[tab].restyle()
        return self._views[tab]

    # -- what the page says --------------------------------------------------------------------------------------------

    def _heard(self, message: dict[str, Any]) -> None:
        act: dict[str, Callable[[dict[str, Any]], None]] = {
            "ready": self._on_ready,
            "step": self._on_step,
            "tab": lambda m: self.choose(tab=m["tab"]) if m.get("tab") in TABS else None,
            "run": lambda m: self.open_run(str(m.get("run"))),
            "undo": lambda _: self._restore(self._history.undo()),
            "redo": lambda _: self._restore(self._history.redo()),
            "export": lambda m: self._on_export(str(m.get("form"))),
            "theme": lambda m: self._on_theme(bool(m.get("dark"))),
            "follow": lambda _: self._on_follow(),
            "room": self._on_room,
            "painted": lambda m: self.following.painted(m.get("push")),
            "seen": lambda m: self.following.seen(bool(m.get("visible"))),
        }
        act.get(str(message.get("do")), self.following.heard)(message)

    def _on_ready(self, message: dict[str, Any]) -> None:
        self._on_theme(bool(message.get("dark")))
        self.following.ready()
        self._on_room(message)

    def _on_room(self, message: dict[str, Any]) -> None:
        height = message.get("height")
        self.room = int(height) if isinstance(height, int | float) and 0 < height < 1e5 else self.room
        self.show()

    def _on_step(self, message: dict[str, Any]) -> None:
        step, ack = message.get("step"), message.get("seq")
        if isinstance(step, int):
            self.following.wanted = False
            self._history.go(self._whole(self.selection.at(step=step)))
        self.show(ack if isinstance(ack, int) else None)

    def _on_follow(self) -> None:
        self.following.wanted = True
        if self.following.on:
            self.following.pulse.look(now=True)
            self._go_along()
        self.show()

    def _on_theme(self, dark: bool) -> None:
        self.dark = dark
        with pn.io.hold():  # What the page says comes without the document's lock, which Bokeh by itself would ask for.
            for view in self._views.values():
                view.restyle()

    def _on_export(self, form: str) -> None:
        view = self._view(self.selection.tab)
        columns = getattr(view, "export", dict)()
        if not columns or form not in FORMATS:
            self._problem = "there is nothing on show to export"
            self._shell.tell(self._state(None))
            return
        name = f"{self.run.name}-{self.selection.tab}-{self.selection.step}"
        self._shell.tell({"kind": "download", "address": self._runs.exports.offer(name, columns, form)})

    def _restore(self, moved: bool) -> None:
        self.following.wanted &= not moved
        if moved and self.selection.run != self.run.name:
            self.run = self._runs.open(self.selection.run)
            self._begin(follow=False)
        self.show()

    def open_run(self, name: str) -> None:
        """Show another run of the list; one that cannot be opened is said, and the one on show stays."""
        if name not in self._runs.names:
            return
        try:
            self.run = self._runs.open(name)
        except RewindError as error:
            self._problem = str(error)
            self._shell.tell(self._state(None))
            return
        self._history.go(self._whole(self.selection))
        self._begin()
        self.show()

    # -- for the tabs --------------------------------------------------------------------------------------------------

    def later(self, work: Callable[[Recorded], Any], done: Callable[[Any], None]) -> None:
        """Run `work(run)` in this page's thread, on the run opened once more; then `done(result or RewindError)`."""
        run, generation = self.run, self.following.pulse.generation
        self.aside(lambda: self._runs.twins.work(run, generation, work), done)

    @property
    def live(self) -> bool:
        """Whether the run on show goes on."""
        return self.following.pulse.live

    def look(self, done: Callable[[Found], None]) -> None:
        """Look into the run in a thread; then `done(what was found)` in the page's turn, perhaps more than once."""
        run = self.run

        def told(found: Found) -> None:
            if not self._closed:
                self._turn(lambda: done(found) if run is self.run else None)

        self._runs.lookout.look(run, told)

    def rerun(self) -> None:
        """Run the chosen step again; what that gives is then shown."""
        self._view("replay").start()

    def aside(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `work()` in this page's thread; then `done(result or RewindError)`."""
        self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="rewind-view")

        def whole() -> None:
            try:
                result = work()
            except RewindError as error:
                result = error
            except Exception as error:
                log.exception("slow work of a page failed")
                result = RewindError(f"this failed, which is a bug of Rewind: {type(error).__name__}: {error}")
            if not self._closed:
                self._turn(lambda: done(result))

        self._worker.submit(whole)

    def _turn(self, work: Callable[[], None]) -> None:
        """Have `work` called when it is the page's turn."""
        if self._document is None:
            work()
        else:
            self._document.add_next_tick_callback(lambda: self._together(work))

    def _beat(self) -> None:
        self.following.beat()
        if self._moved is not None and time.monotonic() - self._moved > _STILL:
            # It takes some 50 ms in which nothing else gets memory: not while one scrubs.
            self._moved = None
            give_back_later(0)

    def _together(self, work: Callable[[], None]) -> None:
        """Send what `work` changes as Panel sends it: what Bokeh sends by itself may overtake the models it speaks of."""
        with pn.io.hold():
            work()

    def close(self) -> None:
        """Give back what the page held."""
        self._closed = True
        self.following.close()
        for view in self._views.values():
            getattr(view, "close", lambda: None)()
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)
        give_back_later()


def beating(page: weakref.ref[Viewer]) -> Callable[[], None]:
    """What a document calls at each beat. It holds no page: the server's tasks hold the last document after its end."""

    def beat() -> None:
        if (there := page()) is not None:
            there._together(there._beat)

    return beat


def facts(run: Recorded, k: int) -> list[tuple[str, Any]]:
    """What the head of the page says of step `k`."""
    values = run.scalars_at(k)
    shown: list[tuple[str, Any]] = [("step", k)]
    for name in ("epoch", "loss", "lr", "grad_norm"):
        value = values.get(name)
        if value is not None:
            shown.append((name.replace("_", " "), int(value) if name == "epoch" else value))
    verdict = run.verdicts.get(k)
    return [*shown, ("", verdict)] if verdict else shown


def track(run: Recorded, branches: list[int]) -> dict[str, Any]:
    """What the scrubber draws: the first and last step, the marks, those of branches among them, the loss."""
    marks = {**vars(run.marks), "branches": branches}
    return {"first": run.first, "last": run.last, "marks": marks, "loss": skyline(run)}


def skyline(run: Recorded) -> list[tuple[int, float | None]]:
    """The loss as the scrubber draws it: (step, height 0..1), None where it is not finite; at most some 600 points."""
    values, steps = run.scalars.get("loss"), run.scalars.get("step")
    if values is None or steps is None:
        return []
    values, steps = values[steps >= run.first], steps[steps >= run.first]  # A branch has its parent's, too.
    if not np.isfinite(values).any():
        return []
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    level = (values - low) / ((high - low) or 1.0)
    if low > 0 and high / low > 20:
        level = np.log(np.where(values > 0, values, np.nan) / low) / np.log(high / low)
    chosen = downsample(np.where(np.isfinite(values), values, np.nan), 600)
    return [(int(steps[i]), float(level[i]) if np.isfinite(level[i]) else None) for i in chosen]
