"""What torchvision's Normalize did to a run's images, so that they can be shown as they were (S4.2).

A trace keeps the batch as the loop got it, and the program's own source. The mean and deviation are read there as
literals; nothing is executed. They are believed only where the source has one such pair, and where undoing it gives
pixels in 0..1.
Room: apps. May touch: reads the trace's source files.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.manifest import is_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LARGEST = 1_000_000
_SLACK = 0.02


@dataclass(frozen=True)
class Normalize:
    """`(pixel - mean) / std`, by channel; `where` is the file and line that says so."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    where: str

    def undone(self, images: NDArray[Any]) -> NDArray[np.float32] | None:
        """Images [B, C, H, W] before it; None where they have other channels, or were not made by this."""
        if images.ndim != 4 or images.dtype.kind != "f" or images.shape[1] != len(self.mean):
            return None
        shape = (1, len(self.mean), 1, 1)
        pixels = images * np.reshape(self.std, shape) + np.reshape(self.mean, shape)
        finite = pixels[np.isfinite(pixels)]
        if not finite.size or finite.min() < -_SLACK or finite.max() > 1 + _SLACK:
            return None
        return np.clip(pixels, 0, 1).astype(np.float32)


def of_trace(path: Path) -> Normalize | None:
    """The one Normalize that the source kept in the trace at `path` has; None where there is none, or several."""
    found = {n for file in sorted((path / "source").glob("*.py")) for n in _of_file(file)}
    pairs = {(n.mean, n.std) for n in found}
    return min(found, key=lambda n: n.where) if len(pairs) == 1 else None


def _of_file(file: Path) -> list[Normalize]:
    try:
        data = file.read_bytes()
        if b"Normalize" not in data or len(data) > _LARGEST or not is_source(f"source/{file.name}", data):
            return []
        tree = ast.parse(data)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    name = file.name.partition("_")[2]
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [n for call in calls if (n := _of_call(call, name)) is not None]


def _of_call(call: ast.Call, name: str) -> Normalize | None:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    given = [*call.args, *(named[n] for n in ("mean", "std")[len(call.args) :] if n in named)]
    if called != "Normalize" or len(given) < 2:
        return None
    mean, std = (_numbers(node) for node in given[:2])
    if not mean or len(mean) != len(std) or not all(0 < s < 1e6 for s in std):
        return None
    return Normalize(mean, std, f"{name}:{call.lineno}")


def _numbers(node: ast.expr) -> tuple[float, ...]:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ()
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(float(v) for v in values) if all(isinstance(v, int | float) for v in values) else ()
