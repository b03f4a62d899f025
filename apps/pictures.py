"""What can be shown of a batch of any kind: pictures, labels, tables, text. Room: apps. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from apps.normalize import Normalize


_MOST_TEXTS: Final = 512
ROWS: Final = 64
COLUMNS: Final = 40
_EXACT: Final = 2**53
BAD: Final = (140, 90, 200)
"""What is NaN or infinite, in every picture (UNKNOWN in static/common.js)."""


@dataclass(frozen=True)
class Batch:
    """One batch: `images` uint8 [B, H, W] or [B, H, W, 3] where it has some, `labels` [B], `text` for all else.

    `note` says what was undone for display. `bad` pixels are NaN or infinite: the images are then in colour, and those
    pixels are BAD.
    """

    images: NDArray[np.uint8] | None
    labels: list[Any] | None
    text: str
    size: int
    note: str = ""
    bad: int = 0
    value: Any = None
    """The batch itself, nested as the loop got it, where it has no images."""


@dataclass(frozen=True)
class Sheet:
    """One array of a batch as a table, the first `ROWS` x `COLUMNS` of it; or words, where it is no array.

    `note` says what of it is not shown. `samples` is how many tables there are, one a sample, of which this is one.
    """

    name: str
    kind: str
    rows: list[list[Any]]
    text: str = ""
    note: str = ""
    samples: int = 0


def shown_batch(value: Any, normalize: Normalize | None = None) -> Batch:
    """What can be shown of a batch of any kind; `normalize` is undone for display where the images were made by it."""
    parts = [np.asarray(plain(p)) for p in _leaves(value) if hasattr(p, "shape")]
    arrays = [a for a in parts if a.ndim]
    pixels = next((a for a in arrays if is_image(a)), None)
    undone = normalize.undone(pixels) if normalize is not None and pixels is not None else None
    shown = pixels if undone is None else undone
    images = None if shown is None else as_images(shown)
    bad = 0 if shown is None else int((~np.isfinite(shown)).sum())
    notes = [f"Normalize undone, as {normalize.where} has it"] if undone is not None and normalize is not None else []
    notes += [f"{bad} pixel{'s' * (bad > 1)} NaN or infinite: violet"] if bad else []
    size = len(arrays[0]) if arrays else 0
    labels = next((a.tolist() for a in arrays if a.ndim == 1 and len(a) == size and a is not arrays[0]), None)
    note = " · ".join(notes)
    if images is not None:
        return Batch(images, labels, "", size, note, bad)
    return Batch(None, labels, _described(value), size, note, bad, value)


def sheets(value: Any, sample: int = 0) -> list[Sheet]:
    """A batch without images as tables; of what has more dimensions than a table those of one `sample`."""
    return [_sheet(name, leaf, sample) for name, leaf in _named_leaves(value, "")]


def _sheet(name: str, leaf: Any, sample: int) -> Sheet:
    if isinstance(leaf, list):
        cut = f"the first {_MOST_TEXTS} of {len(leaf)} are shown" if len(leaf) > _MOST_TEXTS else ""
        return Sheet(name or "texts", f"{len(leaf)} texts", [[text[:400]] for text in leaf[:_MOST_TEXTS]], note=cut)
    if not hasattr(leaf, "shape"):
        return Sheet(name or "batch", type(leaf).__name__, [], str(leaf)[:2000])
    array, kind = np.asarray(plain(leaf)), f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
    if not array.size or not array.ndim:
        return Sheet(name or "batch", kind, [], str(array.tolist()))
    samples = len(array) if array.ndim > 2 else 0
    table = array[min(sample, samples - 1)].reshape(array.shape[1], -1) if samples else np.atleast_2d(array)
    height, width = table.shape
    cut = f"the first {min(height, ROWS)} x {min(width, COLUMNS)} of {height} x {width}"
    shown = table[:ROWS, :COLUMNS]
    exact = shown.dtype.kind not in "iu" or ((shown >= -_EXACT).all() and (shown <= _EXACT).all())
    rows = (shown if exact else shown.astype(str)).tolist()  # A browser's numbers are floats: text holds them all.
    return Sheet(name or "batch", kind, rows, "", cut if height > ROWS or width > COLUMNS else "", samples)


def columns_of(value: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a batch as columns of one length, a value a sample each; what has more dimensions whole, for .npz."""
    arrays = {n or "batch": np.asarray(plain(leaf)) for n, leaf in _named_leaves(value, "") if hasattr(leaf, "shape")}
    size = max((len(a) for a in arrays.values() if a.ndim), default=0)
    found: dict[str, NDArray[Any]] = {"position": np.arange(size)}
    for name, array in arrays.items():
        if array.ndim == 2 and len(array) == size:
            found |= {f"{name}.{i}": column for i, column in enumerate(array.T)}
        elif array.ndim > 2 or (array.ndim == 1 and len(array) == size):
            found[name] = array
    return found if size else {}


def _named_leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The arrays, lists of texts and other values of a batch, each with its place in it."""
    texts = isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)
    if isinstance(value, dict) or (isinstance(value, list | tuple) and not texts):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _named_leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(value) if texts else value


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
    pixels = np.ascontiguousarray((np.clip(scaled, 0, 1) * 255).round().astype(np.uint8))
    return pixels if finite.size == array.size else _marked(pixels, np.isfinite(array))


def _marked(pixels: NDArray[np.uint8], finite: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pictures in colour, in which what is not finite has a colour that no picture has by chance: it is no black."""
    if pixels.ndim == 3:
        pixels, finite = np.repeat(pixels[..., None], 3, axis=3), finite[..., None]
    return np.where(finite.all(axis=3, keepdims=True), pixels, np.array(BAD, np.uint8))


def _described(value: Any) -> str:
    """A batch in words, a part for each array, list of texts, or other value; each under its place in the batch."""
    return "\n\n".join(_words(path, leaf) for path, leaf in _named_leaves(value, "")) or "an empty batch"


def _words(path: str, leaf: Any) -> str:
    if isinstance(leaf, list):
        texts = "\n".join(f"{i:>4}  {item[:400]}" for i, item in enumerate(leaf[:_MOST_TEXTS]))
        return f"{path or 'texts'}: {len(leaf)} texts\n{texts}" + ("\n      …" if len(leaf) > _MOST_TEXTS else "")
    if not hasattr(leaf, "shape"):
        return f"{path or 'batch'}: {str(leaf)[:2000]}"
    array = np.asarray(plain(leaf))
    text = np.array2string(array, threshold=3000, edgeitems=8, precision=4, max_line_width=150)
    return f"{path or 'batch'}: {array.dtype} {list(array.shape)}\n{text}"


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
