"""The demo: the BCL autoencoder on real digits, recorded in full detail, replayed, verified, and looked at.

Room: apps. May touch: the trace it makes, and what recording and replaying a script touch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tracer
from analysis.similarity import off_diagonal_mean
from apps.findings import WEIGHT, findings, stored_step
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer import Trace

SCRIPT: Final = Path(__file__).with_name("demo_train.py")
MODES: Final = ("coupled", "decoupled", "control")
LOOK_AT: Final = (0, 50, 100, 499)
FEATURES: Final = 64


@dataclass(frozen=True)
class Demo:
    """What the demo recorded and found; `rows` is a row a step looked at, `report` the verdict on its replay."""

    path: Path
    mode: str
    rows: list[dict[str, float]]
    report: Any


def run_demo(
    steps: int = 500,
    out: str | Path | None = None,
    mode: str = "coupled",
    *,
    som: str = "medium",
    mnist: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    verify: bool = True,
) -> Demo:
    """Record the demo's script for `steps` steps into `out` (default runs/demo), replay and verify it, and look at it.

    `report` is None where `verify` is False. Raises UsageError for a mode or number of steps that there is not, and
    what `tracer.launch.record_script` raises (UsageError where `out` exists).
    """
    path = Path(out) if out is not None else Path("runs") / "demo"
    arguments = script_arguments(steps=steps, mode=mode, som=som, mnist=mnist, seed=seed)
    _record(path, arguments, overwrite=overwrite)
    report = _verify(path) if verify else None
    return Demo(path, mode, look(path), report)


def script_arguments(
    *, steps: int, mode: str, som: str = "medium", mnist: str | Path | None = None, seed: int = 0
) -> list[str]:
    """The demo script's command line. Raises UsageError for a mode or number of steps that there is not."""
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if steps < 1:
        raise UsageError(f"the demo needs at least one step, not {steps}")
    arguments = ["--steps", str(steps), "--som", som, "--seed", str(seed)]
    if mode != "coupled":
        arguments.append(f"--{mode}")
    return arguments if mnist is None else [*arguments, "--mnist", str(mnist)]


def look(path: str | Path, steps: Iterable[int] = LOOK_AT) -> list[dict[str, float]]:
    """The findings table of a recorded demo: a row for each of `steps` that it has, and for its last one.

    Without BCL (control) there are the loss and the weights alone.
    """
    with tracer.open_trace(path) as trace:
        return [row(trace, k) for k in sorted({*steps, len(trace) - 1}) if 0 <= k < len(trace)]


def row(trace: Trace, k: int) -> dict[str, float]:
    """One row of the findings table, with its step and loss."""
    step = stored_step(trace, k)
    known = findings(step) if "bcl/som_targets" in step.captures else _weights_alone(step.state)
    return {"step": k, "loss": trace.record(k)["loss"], **known}


def columns(rows: list[dict[str, float]]) -> tuple[list[str], list[list[float | str]]]:
    """The findings table as headings and cells, with figures as a reader wants them."""
    names = [name for name in HEADINGS if rows and name in rows[0]]
    cells = [[_shown(name, values[name]) for name in names] for values in rows]
    return [HEADINGS[name] for name in names], cells


HEADINGS: Final = {
    "step": "step",
    "loss": "loss",
    "alive": f"alive of {FEATURES}",
    "cosine_of_weights": "cosine of weights",
    "cosine_of_targets": "cosine of SOM targets",
    "ratio_by_masked_gradient": "SOM : masked gradient",
    "ratio_by_movement": "SOM : real movement",
    "fight": "forces that fight",
}


def conclusions(demo: Demo) -> list[str]:
    """What the table says, in words with its own figures: nothing is said that the figures don't show."""
    first, last = demo.rows[0], demo.rows[-1]
    said = [
        f"Features: the mean cosine between weights went from {first['cosine_of_weights']:.3f} to"
        f" {last['cosine_of_weights']:.3f} (steps {first['step']} and {last['step']})."
    ]
    if "cosine_of_targets" not in last:
        return said
    lead = [r["step"] for r in demo.rows if r["cosine_of_targets"] > 0.9 >= r["cosine_of_weights"]]
    if lead:
        steps = ", ".join(str(step) for step in lead)
        said.append(f"Targets lead: SOM targets are alike (over 0.9) while weights are not yet, at step {steps}.")
    stronger = "SOM" if last["ratio_by_movement"] > 1 else "optimizer"
    said.append(
        f"Forces at step {last['step']}: the SOM's movement is {last['ratio_by_masked_gradient']:.3g} times the masked"
        f" gradient; of the real movement the {stronger} does more (SOM : optimizer {last['ratio_by_movement']:.3g})."
        " Adam rescales small gradients: the two ratios answer two questions."
    )
    return said


def _record(path: Path, arguments: list[str], *, overwrite: bool) -> None:
    from tracer.launch import record_script  # noqa: PLC0415 - imports torch
    from tracer.options import Options  # noqa: PLC0415 - as above

    code = record_script(str(SCRIPT), arguments, out=path, options=Options(detail="full"), overwrite=overwrite)
    if code:
        raise UsageError(f"the demo's script ended with exit code {code}: see its message above")


def _verify(path: Path) -> Any:
    from replay import verify  # noqa: PLC0415 - imports torch

    return verify(path)


def _weights_alone(state: Any) -> dict[str, float]:
    return {"cosine_of_weights": off_diagonal_mean(state[WEIGHT])}


def _shown(name: str, value: float) -> float | str:
    if name in ("step", "alive", "fight"):
        return int(value)
    return f"{value:.4g}" if name.startswith("ratio") else f"{value:.4f}"
