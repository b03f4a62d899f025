"""The random generators of a process: snapshot, compare and put back, torch (every device), Python, NumPy.

While nothing moves a snapshot is a look at three Mersenne twisters, torch's, Python's and NumPy's, straight in memory (2 us;
the public calls take 5, 10 and 40); whether that reading is right in this process is checked once, and where it is not, the
public call is used.
Room: tracer. May touch: the generators (`restore` only).
"""

from __future__ import annotations

import base64
import ctypes
import functools
import random
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash

from tracer import values

_TWISTER = 624
_PY_BYTES = 4 + 4 * _TWISTER
_NP_BYTES = 4 * _TWISTER + 4
_PY_OFFSET = object.__basicsize__


def _python_raw(generator: random.Random) -> bytes:
    return ctypes.string_at(id(generator) + _PY_OFFSET, _PY_BYTES) + repr(generator.gauss_next).encode()


def _python_state(generator: random.Random) -> tuple[bytes, float | None]:
    _, numbers, gauss = generator.getstate()
    return np.array(numbers, dtype=np.uint32).tobytes(), gauss


def _python_peek_is_right() -> bool:
    try:
        raw = ctypes.string_at(id(random._inst) + _PY_OFFSET, _PY_BYTES)  # type: ignore[attr-defined]
        key, _ = _python_state(random._inst)  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return False
    return raw[4:] == key[:-4] and raw[:4] == key[-4:]


def _numpy_generator() -> np.random.RandomState:
    return np.random.mtrand._rand  # type: ignore[attr-defined]


def _numpy_address() -> int | None:
    bits = _numpy_generator()._bit_generator  # type: ignore[attr-defined]
    if type(bits) is not np.random.MT19937:
        return None
    address = bits.ctypes.state_address
    state = bits.state["state"]
    expected = np.asarray(state["key"], np.uint32).tobytes() + np.int32(state["pos"]).tobytes()
    return address if ctypes.string_at(address, _NP_BYTES) == expected else None


_TORCH_BEFORE, _TORCH_BEHIND = 24, 28
"""Around torch's twister lie its seed and place, and the second Gaussians (float, double) that wait to be drawn."""
_TORCH_WORDS = slice(24, 24 + 8 * 16)
"""Where `Generator.get_state` has the first words of the twister, 8 bytes each."""


def _torch_memory(generator: torch.Generator) -> ctypes.Array[ctypes.c_char] | None:
    """The memory of a CPU generator that changes whenever it is drawn from or set; None where it is not found."""
    words = generator.get_state()[_TORCH_WORDS].numpy().view(np.uint64).astype(np.uint32).tobytes()
    place = ctypes.string_at(generator._cdata, 256).find(words)
    if place < _TORCH_BEFORE:
        return None
    size = _TORCH_BEFORE + 4 * _TWISTER + _TORCH_BEHIND
    return (ctypes.c_char * size).from_address(generator._cdata + place - _TORCH_BEFORE)


@functools.cache
def _torch_peek_is_right() -> bool:
    """Whether that memory of a generator of our own shows every draw, of Gaussians that waited, too, and being set."""
    own = torch.Generator()
    memory = _torch_memory(own)
    if memory is None:
        return False
    seen = [memory.raw]
    for draw in (
        lambda: torch.rand(1, generator=own),
        *(2 * (lambda: torch.randn(1, generator=own),)),
        *(2 * (lambda: torch.randn(1, generator=own, dtype=torch.float64),)),
        lambda: own.manual_seed(1),
    ):
        draw()
        seen.append(memory.raw)
    return len(set(seen)) == len(seen)


@dataclass(frozen=True)
class Rng:
    """The state of all global generators at one moment; equal snapshots mean equal generators."""

    torch: bytes
    python: bytes
    numpy: bytes
    cuda: tuple[bytes, ...] = ()

    def hash(self) -> str:
        """A 64-bit hash in hex, to say whether two runs had the same randomness."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = xxhash.xxh3_64(self.torch)
        for part in (self.python, self.numpy, *self.cuda):
            digest.update(part)
        return digest.hexdigest()


def moved(before: Rng, after: Rng) -> set[str]:
    """The names, as in `capture_state`, of the generators that moved between two snapshots."""
    names = ("torch", "python", "numpy", "cuda")
    return {name for name in names if getattr(before, name) != getattr(after, name)}


class RngReader:
    """Takes snapshots of the global generators of this process; while none moves it is the same snapshot again."""

    def __init__(self) -> None:
        self._python = random._inst  # type: ignore[attr-defined]
        self._peek_python = _python_peek_is_right()
        self._py_raw = (ctypes.c_char * _PY_BYTES).from_address(id(self._python) + _PY_OFFSET)
        address = _numpy_address()
        self._np_memory = None if address is None else (ctypes.c_char * _NP_BYTES).from_address(address)
        self._np_raw = b""
        self._np_full = b""
        self._np_gauss = True
        self._torch_memory = _torch_memory(torch.default_generator) if _torch_peek_is_right() else None
        self._last = Rng(b"", b"", b"")
        self._looked: Any = None

    def _numpy_raw(self) -> bytes:
        return b"" if self._np_memory is None else self._np_memory.raw

    def _numpy(self) -> bytes:
        # A cached second Gaussian is not in the twister: with none cached, an unmoved twister means an unmoved generator.
        raw = self._numpy_raw()
        if raw and raw == self._np_raw and not self._np_gauss:
            return self._np_full
        name, key, pos, has_gauss, gauss = np.random.get_state()
        tail = np.array([pos, has_gauss], np.int64).tobytes() + np.float64(gauss).tobytes()
        self._np_raw, self._np_gauss = raw, bool(has_gauss)
        self._np_full = str(name).encode() + np.asarray(key).tobytes() + tail
        return self._np_full

    def _python_bytes(self) -> bytes:
        if self._peek_python:
            return self._py_raw.raw + repr(self._python.gauss_next).encode()
        key, gauss = _python_state(self._python)
        return key + repr(gauss).encode()

    def _look(self) -> Any:
        """What the memory of all generators holds, None where that may not show all of them."""
        if self._torch_memory is None or not self._peek_python or self._np_memory is None or self._np_gauss:
            return None
        if torch.cuda.is_initialized():
            return None
        return self._torch_memory.raw, self._py_raw.raw, self._np_memory.raw, self._python.gauss_next

    def snapshot(self) -> Rng:
        """Return the state of all global generators now."""
        looked = self._look()
        if looked is None or looked != self._looked:
            self._last = self._read()
            self._looked = self._look()
        return self._last

    def _read(self) -> Rng:
        now, last = torch.default_generator.get_state().numpy().tobytes(), self._last
        python, numpy = self._python_bytes(), self._numpy()
        cuda: tuple[bytes, ...] = ()
        if torch.cuda.is_initialized():
            cuda = tuple(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
        if now != last.torch or python != last.python or numpy != last.numpy or cuda != last.cuda:
            return Rng(now, python, numpy, cuda)
        return last

    def put_back(self, wanted: Rng) -> None:
        """Put the generators back to a snapshot; those that have not moved since cost only the look."""
        now = self.snapshot()
        if now.torch != wanted.torch:
            torch.set_rng_state(torch.frombuffer(bytearray(wanted.torch), dtype=torch.uint8))
        if now.python != wanted.python:
            self._python.setstate(self._python_numbers(wanted.python))
        if now.numpy != wanted.numpy:
            _numpy_generator().set_state(_numpy_numbers(wanted.numpy))
        if now.cuda != wanted.cuda and wanted.cuda:
            torch.cuda.set_rng_state_all([torch.frombuffer(bytearray(s), dtype=torch.uint8) for s in wanted.cuda])

    def _python_numbers(self, raw: bytes) -> tuple[int, tuple[int, ...], float | None]:
        words = np.frombuffer(raw[:_PY_BYTES], np.uint32)
        ordered = np.roll(words, -1) if self._peek_python else words
        gauss = raw[_PY_BYTES:].decode()
        return 3, tuple(ordered.tolist()), None if gauss == "None" else float(gauss)


def _numpy_numbers(raw: bytes) -> tuple[str, np.ndarray, int, int, float]:
    words, tail = raw[:-24][-4 * _TWISTER :], raw[-24:]
    pos, has_gauss = np.frombuffer(tail[:16], np.int64).tolist()
    gauss = float(np.frombuffer(tail[16:], np.float64)[0])
    return raw[: -24 - len(words)].decode(), np.frombuffer(words, np.uint32), pos, has_gauss, gauss


def capture_state() -> dict[str, Any]:
    """Return the generators' states as values that `tracer.values` can encode."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": generator_state(random._inst),  # type: ignore[attr-defined]
        "numpy": generator_state(_numpy_generator()),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_state(state: dict[str, Any]) -> None:
    """Put the global generators back to what `capture_state` returned."""
    torch.set_rng_state(state["torch"])
    put_generator_state(random._inst, state["python"])  # type: ignore[attr-defined]
    put_generator_state(_numpy_generator(), state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def restore_some(state: dict[str, Any]) -> None:
    """As `restore_state`, of some of the generators: the others stay as they are."""
    if state:
        restore_state({**capture_state(), **state})


def portable_state() -> dict[str, Any]:
    """Return `capture_state` as pure JSON."""
    buffers: list[bytes | memoryview] = []
    node = values.encode(capture_state(), buffers)
    return {"node": node, "buffers": [base64.b64encode(zlib.compress(b)).decode() for b in buffers]}


def restore_portable(state: dict[str, Any]) -> None:
    """Put the global generators back to what `portable_state` returned."""
    restore_state(values.decode(state["node"], lambda i: zlib.decompress(base64.b64decode(state["buffers"][i]))))


Generator = torch.Generator | random.Random | np.random.Generator | np.random.RandomState | np.random.BitGenerator
GENERATOR_TYPES = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
)


def generator_state(generator: Generator) -> Any:
    """Return the state of a generator object as values that can be encoded."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, numbers, gauss = generator.getstate()
        return {"version": version, "key": np.array(numbers, np.uint64), "gauss": gauss}
    if isinstance(generator, np.random.RandomState):
        return dict(generator.get_state(legacy=False))
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return dict(bits.state)


def put_generator_state(generator: Generator, state: Any) -> None:
    """Put a generator object back to what `generator_state` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        key = tuple(int(n) for n in state["key"])
        generator.setstate((state["version"], key, state["gauss"]))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bits.state = state
