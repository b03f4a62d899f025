"""Past the parent's last step: whether the program's own DataLoader can take over from the recorded batches, exactly. # B4

On recorded batches the loader's own iterator stands still. For a branch that is to be longer than its parent it is
fetched from beside them, from the start of a loop on, and compared: while it gives the same batches and moves the random
generators alike it stands where the recorded one stood, and what it gives after the last recorded batch is what the
parent would have had.
Room: replay. May touch: the random generators while it fetches; they are put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.leaves import same_values
from replay.timeline import Plan, plan
from tracer import rng

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.timeline import Span
    from tracer.trace import Trace

_END = object()


class Shadow:
    """The loader's own fetches, beside the recorded ones. `aligned`: it stands where the recorded loader stood."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.aligned = False
        self._reader = rng.RngReader()

    def fetch(self, native: Callable[[], Any], give: Callable[[Callable[[], Any]], Any], *, entry: bool) -> Any:
        """Return the batch that `give` has, having fetched one from `native`, too. `entry`: a loop begins with it."""
        if not (entry or self.aligned):
            return give(native)
        before = rng.capture_state()
        try:
            own = native()
        except StopIteration:
            own = _END
        moved = self._reader.snapshot()
        rng.restore_state(before)
        batch = give(lambda: own)
        self.aligned = own is not _END and same_values(own, batch) and self._reader.snapshot() == moved
        return batch


def last_entry(trace: Trace, first: int) -> int:
    """Return the step with which the loop begins that the trace ends in; `first` is that of its session."""
    return next((k for k in range(trace.steps - 1, first, -1) if trace.record(k).get("left")), first)


def way_through_entry(trace: Trace, at: int, span: Span, keyframes: list[int]) -> Plan:
    """Return a way to state `at` on which the last loop is entered by the program itself, not by a keyframe."""
    entry = last_entry(trace, span.first)
    if at <= entry:
        return plan(at, keyframes, [span])
    before = [k for k in keyframes if span.first <= k < entry]
    start = before[-1] if before else None
    return Plan(at, span.session, start, at - (span.first if start is None else start))
