"""The live side of one page: it follows the run, shows how it stands, and hands on what its buttons say. # S2.1 S2.2 S3.3 S4.1

A page beats some times a second. A beat tells the page how the run stands, which also says that this server is there;
and brings what is shown up to date, at most once a second and never before the page has painted the last. All that is
shown is taken from the trace anew each time: nothing can come twice, or be missed, whatever was lost on the way.
Room: apps. May touch: the page it belongs to, the live run through `apps.pilot`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from apps.memory import give_back
from apps.pilot import Aside, Peeked, Pilot
from apps.pulse import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from apps.pulse import Pulse
    from apps.recorded import Recorded
    from apps.runs import Runs

BEAT: Final = 0.15
HEARTBEAT: Final = 1.0
PATIENCE: Final = 5.0
"""Seconds after which a page that has not said that it painted is painted again."""
_SAID: Final = ("status", "step", "by_hand", "hyperparameters", "changes")


class Page(Protocol):
    """What `Following` asks of its page."""

    run: Recorded

    def redraw(self) -> None:
        """Show what is new."""

    def tell(self, frame: dict[str, Any]) -> None:
        """Tell the page's frame."""


class Following:
    """`wanted` is whether the page goes along with the run while it goes on."""

    def __init__(self, page: Page, runs: Runs, turn: Callable[[Callable[[], None]], None]) -> None:
        """`turn` has a function called when it is the page's turn."""
        self._page, self._runs = page, runs
        self.wanted = True
        self._ending = False
        self._aside = Aside(turn)
        self._visible = False
        self._sent: tuple[float, Any] = (-1e9, None)
        self._stripped: Any = None
        self._pushes = self._painted = 0
        self._pushed = -1e9
        self._begin()

    @property
    def pulse(self) -> Pulse:
        """The standing of the run on show."""
        return self._runs.pulse(self._page.run)

    def _begin(self) -> None:
        run = self._page.run
        self._run = run
        self._runs.enter(run, id(self))
        self._pilot = Pilot(self._runs.hands, run.trace.path, self._aside)
        self.pulse.look(now=True)
        self.pulse.renew(now=True)
        self._drawn, self._was_live = self.pulse.generation, self.pulse.live
        self._along = self.on

    def begin(self, *, wanted: bool) -> None:
        """The page shows another run, or its first: go along with it where that is wanted."""
        if self._run is not self._page.run:
            self._begin()
        self.wanted = wanted

    @property
    def on(self) -> bool:
        """Whether the page is at the newest step, and goes along with it."""
        return self.wanted and (self.pulse.live or self._ending)

    # -- the beat ------------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Some times a second: look, say how the run stands, show what is new."""
        pulse = self.pulse
        pulse.look()
        self._was_live |= pulse.live
        self._ask(pulse)
        self._say(pulse)
        if self._visible and self._has_painted:
            self._show(pulse)

    def _show(self, pulse: Pulse) -> None:
        pulse.renew()
        if pulse.generation != self._drawn:
            self._drawn = pulse.generation
            self._ending = self._along  # The last steps of a run that is over are still gone along with.
            self._page.redraw()
            self._ending = False
        # Of a run that is over steps may still come to light: who went along and has not turned back goes along with these, too.
        self._along = self.on or (self._along and self.wanted)

    @property
    def _has_painted(self) -> bool:
        return self._painted == self._pushes or time.monotonic() - self._pushed > PATIENCE

    def pushed(self) -> int:
        """What is shown was brought up to date: the number under which the page will say that it has painted it."""
        self._pushes += 1
        self._pushed = time.monotonic()
        return self._pushes

    def painted(self, push: Any) -> None:
        """The page has painted."""
        if isinstance(push, int):
            self._painted = max(self._painted, min(push, self._pushes))

    def seen(self, visible: bool) -> None:
        """Somebody looks at the page, or its tab is in the background."""
        self._visible = visible

    def _ask(self, pulse: Pulse) -> None:
        if not pulse.live:
            self._pilot.forget()
            return
        if not self._visible:
            return
        self._pilot.ask(pulse.status, pulse.silent)
        run, state = self._page.run, self._pilot.state
        rests = state.get("status") == "paused" and state["step"] == run.last + 1
        if rests and pulse.peeked != run.last:
            pulse.peeked = run.last
            self._pilot.peek(run, self._took)

    def _took(self, found: Peeked) -> None:
        if found.too_large:
            self.pulse.note = f"{found.too_large / 1e6:.0f} MB of weights are more than the app asks a paused run for"
            return
        self._run.take(found)
        self.pulse.generation += 1

    # -- what it says --------------------------------------------------------------------------------------------------

    def _say(self, pulse: Pulse) -> None:
        frame = {
            "kind": "pulse",
            "status": pulse.status,
            "live": pulse.live,
            "following": self.on,
            "first": self._page.run.first,
            "last": self._page.run.last,
            "problem": pulse.problem,
        }
        now = time.monotonic()
        if frame != self._sent[1] or now - self._sent[0] > HEARTBEAT:
            self._page.tell(frame)
            self._sent = (now, frame)
        strip = self.strip_frame()
        if strip != self._stripped:
            self._stripped = strip
            self._page.tell(strip)

    def strip_frame(self) -> dict[str, Any]:
        """How the run stands, for the strip of bars and buttons; it shows nothing of a run that never was live here."""
        pulse = self.pulse
        silent = int(pulse.silent)
        state = self._pilot.state
        behind = state.get("step", 0) > self._page.run.last + 1
        stuck = pulse.live and silent >= 3 and (behind or bool(state.get("refused")))
        return {
            "kind": "live",
            "shown": self._was_live or bool(pulse.counts.get("lost")),
            "live": pulse.live,
            "status": pulse.status,
            "path": str(self._page.run.trace.path),
            "progress": {k: v for k, v in pulse.facts.items() if k != "updated_at"},
            "silent": silent if pulse.status == "running" and silent >= 5 else 0,
            "counts": pulse.counts,
            "control": {name: state[name] for name in _SAID if name in state},
            "problem": self._pilot.problem,
            "refused": _refused(self._page.run, state) if stuck else "",
            "note": pulse.note if pulse.status == "paused" else "",
        }

    # -- what the page says --------------------------------------------------------------------------------------------

    def heard(self, message: dict[str, Any]) -> None:
        """A button, if it is one: pause, step, resume, stop, set, keep."""
        self._pilot.tell(message)

    def ready(self) -> None:
        """The page has come, or come again: it knows nothing yet."""
        self._sent, self._stripped = (-1e9, None), None
        self._painted, self._visible = self._pushes, True
        self._say(self.pulse)

    def close(self) -> None:
        """The page is closed: runs that only closed pages hold go on."""
        left = self._runs.leave(id(self))
        runs, hands, twins = self._runs, self._runs.hands, self._runs.twins

        def let_go() -> None:
            for path in left:
                hands.release(path)
            twins.drop(left)
            runs.let_go(left)
            give_back()

        self._aside.close(let_go)


def _refused(run: Recorded, state: dict[str, Any]) -> str:
    """Why steps do not arrive, of a run that makes them."""
    cause = state.get("refused") or refusal(run.trace.path) or "the disk does not take them"
    return f"the run is at step {state['step'] - 1}, the trace has none after {run.last}: {cause}"
