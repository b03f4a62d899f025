"""A trace as one xarray.Dataset over `step`: weights, captures and scalars, read when they are looked at.

Room: tracer. May touch: reads the trace it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from tracer import stored
from tracer.arrays import default_dims

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.trace import Trace


class _Lazy(BackendArray):
    """An array [step, ...] of which single steps can be read."""

    def __init__(
        self, read: Callable[[np.ndarray], np.ndarray], steps: np.ndarray, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self._read = read
        self._steps = steps
        self.shape = (len(steps), *shape)
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._get)

    def _get(self, key: tuple[Any, ...]) -> Any:
        first = key[0]
        chosen = np.atleast_1d(self._steps[first])
        values = self._read(chosen) if len(chosen) else np.empty((0, *self.shape[1:]), self.dtype)
        values = _fit(values, self.shape[1:])[(slice(None), *key[1:])]
        return values[0] if np.ndim(first) == 0 and not isinstance(first, slice) else values


def _fit(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Short batches alone are narrower than the widest one."""
    if values.shape[1:] == shape:
        return values
    fill = np.nan if values.dtype.kind in "fc" else 0
    wide = np.full((values.shape[0], *shape), fill, values.dtype)
    wide[tuple(slice(0, n) for n in values.shape)] = values
    return wide


def dataset(trace: Trace) -> xr.Dataset:
    """Return the tensors and scalars of `trace`.

    Variables: every tensor of the stored states, over the dimension `state`; every capture, over its own
    `step_<n>` where it was not captured at every step; every scalar of `steps`, over `step`.
    """
    scalars = trace.sql("select * exclude (fingerprint, verdict) from steps order by step").to_arrow_table()
    steps = scalars["step"].to_numpy()
    found: dict[str, xr.Variable] = {
        name: xr.Variable(("step",), scalars[name].to_numpy()) for name in scalars.column_names if name != "step"
    }
    coordinates = {"step": ("step", steps)}
    sizes: dict[str, int] = {}
    for key, series in trace.captures.items():
        own = series.steps
        dim = "step"
        if not np.array_equal(own, steps):
            dim = f"step of {key}"
            coordinates[dim] = (dim, own)
        names = series.dims or default_dims(series.shape)
        dims = (dim, *_dims(sizes, key, names, series.shape))
        dtype = stored.array(np.zeros((1, stored.row_bytes(series.dtype, (1,))), np.uint8), series.dtype, (1,)).dtype
        lazy = _Lazy(series.read, own, series.shape, dtype)
        found[key] = xr.Variable(dims, indexing.LazilyIndexedArray(lazy))
    if len(trace.stored_states):
        coordinates["state"] = ("state", trace.stored_states.array())
        found |= _weights(trace)
    return xr.Dataset(found, coordinates, {"trace": str(trace.path)})


def _dims(sizes: dict[str, int], key: str, names: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    """Dimensions of one name and size are shared; another size under a taken name gets a name of its own."""
    found = []
    for i, (name, size) in enumerate(zip(names, shape, strict=True)):
        shared = name is not None and name not in found and sizes.setdefault(name, size) == size
        found.append(str(name) if shared else f"{key}.{name or i}")
    return tuple(found)


def _weights(trace: Trace) -> dict[str, xr.Variable]:
    states = trace.stored_states.array()
    found = {}
    for entry in trace.layout(int(states[-1])).entries:

        def read(chosen: np.ndarray, name: str = entry.name) -> np.ndarray:
            return trace.weights(name, steps=chosen)[1]

        kind = stored.array(np.zeros((1, max(1, entry.nbytes)), np.uint8), entry.dtype, (-1,)).dtype
        lazy = _Lazy(read, states, entry.shape, kind)
        dims = ("state", *(f"{entry.name}.{i}" for i in range(len(entry.shape))))
        name = entry.name if entry.name not in found else f"{entry.name} (state)"
        found[name] = xr.Variable(dims, indexing.LazilyIndexedArray(lazy))
    return found
