"""What can be shown of a batch of any kind: pictures, labels, text. Room: apps. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from apps.normalize import Normalize


@dataclass(frozen=True)
class Batch:
    """One batch: `images` uint8 [B, H, W] or [B, H, W, 3] where it has some, `labels` [B], `text` for all else.

    `note` says what was undone for display.
    """

    images: NDArray[np.uint8] | None
    labels: list[Any] | None
    text: str
    size: int
    note: str = ""


def shown_batch(value: Any, normalize: Normalize | None = None) -> Batch:
    """What can be shown of a batch of any kind; `normalize` is undone for display where the images were made by it."""
    parts = [np.asarray(plain(p)) for p in _leaves(value) if hasattr(p, "shape")]
    arrays = [a for a in parts if a.ndim]
    pixels = next((a for a in arrays if is_image(a)), None)
    undone = normalize.undone(pixels) if normalize is not None and pixels is not None else None
    images = None if pixels is None else as_images(pixels if undone is None else undone)
    note = "" if undone is None or normalize is None else f"Normalize undone, as {normalize.where} has it"
    size = len(arrays[0]) if arrays else 0
    labels = next((a.tolist() for a in arrays if a.ndim == 1 and len(a) == size and a is not arrays[0]), None)
    return Batch(images, labels, "" if images is not None else _described(value), size, note)


def is_image(array: NDArray[Any]) -> bool:
    """Whether [B, ...] can be seen as pictures: [B, H, W], [B, 1 or 3, H, W], [B, H, W, 3] or [B, n*n] of n >= 8."""
    if array.ndim == 4:
        return min(array.shape[1], array.shape[3]) in (1, 3) and array.dtype.kind in "fu"
    if array.ndim == 3:
        return min(array.shape[1:]) >= 8 and array.dtype.kind in "fu"
    return array.ndim == 2 and array.dtype.kind in "fu" and array.shape[1] >= 64 and square_side(array.shape[1]) > 0


def square_side(count: int) -> int:
    """The side of a square picture of `count` pixels, 0 where there is none."""
    side = round(count**0.5)
    return side if side * side == count else 0


def as_images(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Pictures as uint8 [B, H, W] or [B, H, W, 3]; floats outside 0..1 are stretched over the batch's finite range."""
    if array.ndim == 2:
        array = array.reshape(len(array), square_side(array.shape[1]), -1)
    if array.ndim == 4:
        array = array if array.shape[1] not in (1, 3) else np.moveaxis(array, 1, 3)
        array = array[..., 0] if array.shape[3] == 1 else array
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    scaled = (np.nan_to_num(array.astype(np.float32)) - low) / (high - low or 1)
    return np.ascontiguousarray((np.clip(scaled, 0, 1) * 255).round().astype(np.uint8))


def _described(value: Any) -> str:
    lines = []
    for i, leaf in enumerate(_leaves(value)):
        if hasattr(leaf, "shape"):
            array = np.asarray(plain(leaf))
            text = np.array2string(array, threshold=200, edgeitems=4, precision=4, max_line_width=110)
            lines.append(f"[{i}] {array.dtype} {list(array.shape)}\n{text}")
        else:
            lines.append(f"[{i}] {str(leaf)[:2000]}")
    return "\n\n".join(lines) or "an empty batch"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def plain(tensor: Any) -> Any:
    """A tensor as NumPy can hold it: bfloat16 has no NumPy type."""
    if hasattr(tensor, "is_floating_point"):
        tensor = tensor.detach()
        return tensor.float() if str(tensor.dtype) in ("torch.bfloat16", "torch.float16") else tensor
    return tensor
