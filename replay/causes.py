"""Why a replay may differ from its record: the likely cause, in one line. Room: replay. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracer.past import Past

_WORDS = {
    "torch": "another torch version",
    "cpu_capability": "another CPU capability (other vector instructions round differently)",
    "machine": "another kind of machine",
    "device_name": "another GPU",
    "numpy": "another NumPy version",
    "threads": "another thread count (sums are split differently)",
    "interop_threads": "another number of inter-op threads",
    "mkldnn": "mkldnn is switched differently",
    "matmul_precision": "TF32 or matmul precision is set differently",
    "tf32_cudnn": "TF32 is set differently",
}


@dataclass
class Context:
    """What is known before a step runs: {name: (recorded, here)} of the environment, changed files, whether the code is current."""

    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    changed_sources: list[str] = field(default_factory=list)
    current_source: bool = False


def likely_cause(context: Context, problems: list[str], past: Past, k: int) -> str:
    """Return the likeliest reason for step `k` to differ: environment, then code, then what could not be put back or recorded."""
    for name, (recorded, here) in context.environment.items():
        return f"{_WORDS.get(name, name)}: recorded {recorded}, here {here}"
    if context.changed_sources and context.current_source:
        return f"source changed since recording: {', '.join(context.changed_sources)}"
    if problems:
        return f"not everything could be put back: {problems[0]}"
    holes = past.holes(k)
    compiled = past.compiled
    if holes:
        also = " (or a kernel that torch.compile chose by what it had compiled before)" if compiled else ""
        return f"hidden state that was not recorded: {holes[0]}{also}"
    if compiled:
        return "torch.compile: which kernels run depends on what was compiled before, and was not put back"
    if str(past.trace.manifest.environment.get("device_name") or "None") != "None":
        return "a nondeterministic kernel (see torch.use_deterministic_algorithms)"
    return "the program uses something that is not recorded: a clock, files, the system's randomness, or a nondeterministic kernel"
