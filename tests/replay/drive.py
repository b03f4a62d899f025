"""Replays traces as a user would, in a process of its own, and writes down what it saw.

A line of stdin is a job, [trace, report, seed]: `rewind verify TRACE --json`, then a Session that seeks about in random
order. What is found goes to the file REPORT as JSON, and a line to stdout when it is done:

    verify   {"exit": code, "facts": what --json printed}
    seeks    [{"at": k, "kind", "step", "tensor", "cause", "detail", "equal": bool}, ...]  one per seek and step
    losses   how many steps have no loss
    error    instead of these, the traceback of what went wrong

`equal` is a second opinion on the verdict: whether the weights that the engine holds after the step are, byte for
byte, those that the trace has.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import traceback
from pathlib import Path

import torch
import xxhash


def main() -> None:
    """Do the jobs of stdin, one after the other."""
    for line in sys.stdin:
        trace, report, seed = json.loads(line)
        Path(report).write_text(json.dumps(look_at(Path(trace), seed)))
        print("done", flush=True)


def look_at(trace: Path, seed: int) -> dict:
    """Verify `trace` and seek about in it."""
    try:
        return {"verify": run_verify(trace), **seek_about(trace, seed)}
    except Exception:  # noqa: BLE001  it goes to the test that asked
        return {"error": traceback.format_exc()}


def run_verify(trace: Path) -> dict:
    """Run the command line's verify; its output must be JSON and nothing else."""
    from apps.cli import run

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(["verify", str(trace), "--json"])
    return {"exit": code, "facts": json.loads(out.getvalue())}


def seek_about(trace: Path, seed: int) -> dict:
    """Seek to first, last, the borders of an epoch and some others in random order, stepping after each; then back."""
    import tracer
    from replay import Session

    opened = tracer.open_trace(trace)
    ((missing,),) = opened.sql("select count(*) from steps where loss is null").fetchall()
    with Session(trace) as session:
        places = chosen_steps(opened, random.Random(seed))
        seen = [look(session, opened, k) for k in places]
        session.back()
        seen.append({**look(session, opened, session.position), "back": True})
    return {"seeks": seen, "losses": missing}


def chosen_steps(trace: object, rng: random.Random) -> list[int]:
    """About six steps of `trace` in an order that goes backwards at least once."""
    n = trace.steps
    borders = [k for (k,) in trace.sql("select first_step from epochs where first_step > 0 order by 1").fetchall()]
    chosen = {0, n - 1, *rng.sample(range(n), min(n, 3))}
    if borders:
        border = rng.choice(borders)
        chosen |= {border, border - 1}
    order = sorted(chosen)
    while order == sorted(order) and len(order) > 1:
        rng.shuffle(order)
    return order


def look(session: object, trace: object, k: int) -> dict:
    """Seek to step `k`, execute it and say what came of it."""
    from tracer.errors import ReplayError

    try:
        session.seek(k)
        return {"at": k, **step(session, trace)}
    except ReplayError as error:
        return {"at": k, "kind": type(error).__name__, "step": k, "detail": str(error), "equal": False}


def step(session: object, trace: object) -> dict:
    """Execute one step; the verdict, and whether the weights are those stored."""
    verdict = session.step()
    seen = {name: getattr(verdict, name) for name in ("kind", "step", "tensor", "cause", "detail")}
    return {**seen, "equal": same_weights(session.state, trace, verdict.step)}


def same_weights(state: dict, trace: object, k: int) -> bool:
    """Whether `state` is what step `k` left: by the recorded hashes, and by the stored bytes where there are any.

    Where the loop was left after the step, what is stored as the next state is what the next loop starts from.
    """
    hashes = [xxhash.xxh3_64_intdigest(raw(tensor).numpy().tobytes()) for tensor in state.values()]
    if hashes != trace.record(k)["hashes"]:
        return False
    if not trace.has_state(k + 1) or k + 1 == trace.steps or trace.record(k + 1)["left"]:
        return True
    stored = trace.state(k + 1)
    return stored.keys() == state.keys() and all(same_bytes(stored[name], state[name]) for name in stored)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors agree in type, shape and bytes; NaN equals NaN of the same bits, 0.0 does not equal -0.0."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(raw(a), raw(b))


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of `tensor`, in C order."""
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)


if __name__ == "__main__":
    main()
