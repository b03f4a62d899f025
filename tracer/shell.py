"""The environment variables that a run's exactness depends on, and those with which a process starts that is to be like it.

Room: tracer. Reads `os.environ`; loads no torch, so that a process can be started before torch is loaded here.
"""

from __future__ import annotations

import os
from typing import Any

_PREFIXES = ("OMP_", "MKL_", "KMP_", "ATEN_", "CUBLAS_", "TORCH_", "PYTORCH_", "NVIDIA_TF32")
_NAMES = (
    *("PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
)
_CAPABILITY = {"DEFAULT": "default", "AVX2": "avx2", "AVX512": "avx512"}


def _matters(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _NAMES


def snapshot() -> dict[str, str]:
    """Return those variables as they are here."""
    return {name: value for name, value in os.environ.items() if _matters(name)}


def child_environment(recorded: dict[str, Any]) -> dict[str, str]:
    """Return the variables with which a process must start to be like the one of the environment `recorded`."""
    env = {name: value for name, value in os.environ.items() if not _matters(name)}
    env.update(recorded.get("env", {}))
    env.setdefault("OMP_NUM_THREADS", str(recorded.get("threads", 1)))
    if recorded.get("cpu_capability") and "ATEN_CPU_CAPABILITY" not in env:
        env["ATEN_CPU_CAPABILITY"] = _CAPABILITY.get(recorded["cpu_capability"], "")
    return {name: value for name, value in env.items() if value != ""}
