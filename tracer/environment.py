"""What a run's exactness depends on besides its code: versions, threads, CPU capability, flags. Recorded, compared, put back.

Room: tracer. May touch: torch's global flags (`restore` only).
"""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer import ranks, shell

if TYPE_CHECKING:
    from collections.abc import Callable

_FLAGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "mkldnn": (lambda: torch.backends.mkldnn.enabled, lambda v: setattr(torch.backends.mkldnn, "enabled", v)),
    "matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "tf32_cudnn": (lambda: torch.backends.cudnn.allow_tf32, lambda v: setattr(torch.backends.cudnn, "allow_tf32", v)),
    "cudnn_benchmark": (
        lambda: torch.backends.cudnn.benchmark,
        lambda v: setattr(torch.backends.cudnn, "benchmark", v),
    ),
    "cudnn_deterministic": (
        lambda: torch.backends.cudnn.deterministic,
        lambda v: setattr(torch.backends.cudnn, "deterministic", v),
    ),
    "deterministic_algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "flush_denormal": (lambda: None, lambda v: None),
}
_FIXED = ("torch", "cpu_capability", "machine", "device_name", "numpy")
"""Facts that cannot be put back; a different one is refused unless the caller goes on anyway."""


def _fixed() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def snapshot() -> dict[str, Any]:
    """Return the environment of this process as JSON."""
    flags = {name: get() for name, (get, _) in _FLAGS.items()}
    return {
        **_fixed(),
        **flags,
        **ranks.facts(),
        "interop_threads": torch.get_num_interop_threads(),
        "env": shell.snapshot(),
        "argv0": sys.argv[0],
    }


def restore(recorded: dict[str, Any]) -> list[str]:
    """Put back every flag of `recorded` that differs, and return one line for each that was changed."""
    changed = []
    for name, (get, put) in _FLAGS.items():
        if name in recorded and get() != recorded[name]:
            changed.append(f"{name} {get()} -> {recorded[name]}")
            put(recorded[name])
    return changed


def differences(recorded: dict[str, Any], current: dict[str, Any] | None = None) -> dict[str, tuple[Any, Any]]:
    """Return {name: (recorded, here)} of what differs and cannot be put back."""
    here = _fixed() if current is None else current
    return {k: (recorded[k], here.get(k)) for k in _FIXED if k in recorded and recorded[k] != here.get(k)}
