"""The large values of a program (data sets, mostly), which are not stored while they stay as they were.

Room: tracer. Reads what it is given; changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash

from tracer import values

CONSTANT_FROM = 64 << 10
"""Tensors and arrays of the program's own from this many bytes are stored only if they changed since the session's start."""
LARGEST = 256 << 20


@dataclass
class Constants:
    """The large values of the program (data sets, mostly) by path: their hash at the session's first keyframe.

    What appears later is stored: a program that has just started does not have it.
    """

    first: dict[str, str] = field(default_factory=dict)
    known: bool = False
    _versions: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def has(self, path: str, digest: str) -> bool:
        """Whether the value at `path` is as it was when the session's first keyframe was taken: this one, if there is none yet."""
        if not self.known:
            self.first[path] = digest
        return self.first.get(path) == digest

    def digest(self, path: str, value: Any) -> str:
        """Return the 128-bit hash of a large tensor or array, remembered while torch says that it was not written to."""
        if isinstance(value, np.memmap) and not value.flags.writeable and value.filename is not None:
            return self._of_file(path, value)
        if isinstance(value, np.ndarray):
            return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        version = (id(value), -1 if value.is_inference() else value._version)
        known = self._versions.get(path)
        if known is None or known[:2] != version or value.is_inference():
            known = (*version, xxhash.xxh3_128_hexdigest(values.tensor_bytes(value)))
            self._versions[path] = known
        return known[2]

    def _of_file(self, path: str, value: np.memmap) -> str:
        """Return the hash of a file that can be read only: read once; of a very large one its size and time say enough."""
        facts = os.stat(value.filename)
        known = self._versions.get(path)
        if known is None or known[:2] != (id(value), facts.st_mtime_ns):
            about = f"{facts.st_size} {facts.st_mtime_ns} {value.offset} {value.shape} {value.dtype.str}".encode()
            data = about if value.nbytes > LARGEST else np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            known = (id(value), facts.st_mtime_ns, xxhash.xxh3_128_hexdigest(data))
            self._versions[path] = known
        return known[2]


def is_large(value: Any) -> bool:
    """Whether `value` is a tensor or array that is stored only if it changes."""
    if isinstance(value, torch.Tensor):
        return values.refusal(value) is None and value.numel() * value.element_size() >= CONSTANT_FROM
    return isinstance(value, np.ndarray) and value.nbytes >= CONSTANT_FROM and not value.dtype.hasobject
