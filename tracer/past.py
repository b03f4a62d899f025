"""What a replay needs of a trace beyond what readers use: the pieces that are handed back to a running program.

Room: tracer. May touch: reads the trace it is given.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from tracer import stored, values
from tracer.errors import DamageError, MissingDataError
from tracer.making import Recipe
from tracer.manifest import ROW_ALIGNMENT, is_source
from tracer.packing import PackedLayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.trace import Trace


class Past:
    """The recorded steps of one trace, as an engine asks for them."""

    def __init__(self, trace: Trace) -> None:
        """Read from `trace`, which stays the caller's."""
        self.trace = trace
        self._record: tuple[int, dict[str, Any]] | None = None
        self._names: dict[tuple[int, int], list[str]] = {}
        self._frames: tuple[int, Any, Callable[[int], bytes]] | None = None

    @functools.cached_property
    def keyframes(self) -> frozenset[int]:
        """The states of which there are keyframes, as when this was first asked."""
        return frozenset(self.trace.keyframes)

    def record(self, k: int) -> dict[str, Any] | None:
        """The header of step `k`; None past the last. The last one asked for is remembered."""
        if self._record is not None and self._record[0] == k:
            return self._record[1]
        return self._header(k) if self.trace.first_step <= k < self.trace.steps else None

    def _header(self, k: int) -> dict[str, Any]:
        if self._record is None or self._record[0] != k:
            self._record = (k, self.trace.record(k))
        return self._record[1]

    def batch(self, k: int, template: Any = None) -> Any:
        """The batch of step `k`; named tuples take their types from `template`. Raise MissingDataError, OpaqueValueError."""
        header = self._header(k)
        if header.get("batch") is None:
            raise MissingDataError(f"{self.trace.path}: the batch of step {k} was not recorded", step=k)
        return self._batch(k, header, "", template)

    def fetched(self, k: int, name: str, index: int) -> tuple[Any, dict[str, Any] | None]:
        """Fetch number `index` among the step's `extras`, `skipped` or `trailing` ones: (batch, generators' state if it moved them).

        In place of a batch that was not stored, its recipe. Raise StopIteration where the recorded fetch did.
        """
        found = self._header(k)[name][index]
        if found.get("stop"):
            raise StopIteration
        prefix = f"{'x' if name == 'extras' else name[0]}{index}."
        batch = self._recipe(k, found) or self._batch(k, found, prefix, None)
        return batch, self._rng(k, found["rng"])

    def recipe(self, k: int) -> Recipe | None:
        """How the batch of step `k` was made, where that was stored in its stead."""
        return self._recipe(k, self._header(k))

    def _recipe(self, k: int, header: dict[str, Any]) -> Recipe | None:
        described = header.get("made")
        return None if described is None else Recipe.decode(described["node"], self._reads(k, described))

    def _batch(self, k: int, header: dict[str, Any], prefix: str, template: Any) -> Any:
        inline: list[bytes] = []
        if header["inline"]:
            inline = stored.split(self.trace.piece(k, f"{prefix}inline"), header["inline"])
        return stored.batch(
            header["batch"],
            inline,
            lambda j: self.trace.piece(k, f"{prefix}ids{j}"),
            self.trace.samples,
            template,
            leaves=True,
        )

    def rng(self, k: int) -> dict[str, Any] | None:
        """The state of the global generators at the start of step `k`, where fetching its batch had moved them."""
        return self._rng(k, self._header(k)["rng"])

    def _rng(self, k: int, described: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if described is None else values.decode(described["node"], self._reads(k, described))

    def _reads(self, k: int, described: dict[str, Any]) -> values.Reader:
        """What reads the buffers of a value that lies in a section of its own."""
        return stored.split(self.trace.piece(k, described["section"]), described["sizes"]).__getitem__

    def names(self, k: int) -> list[str]:
        """The names of the tensors whose hashes the record of step `k` has."""
        record = self._header(k)
        wanted, key = record["layout"], (record["session"], record["layout"])
        if key not in self._names:
            frames = self.trace.keyframes
            near = sorted(frames, key=lambda f: (f > k, abs(f - k)))
            layouts = (self.keyframe(f)[0]["layout"] for f in near)
            found = next((layout for layout in layouts if layout["layout"] == wanted), None)
            if found is None:
                raise MissingDataError(f"{self.trace.path}: the layout of step {k} is missing", step=k)
            self._names[key] = [entry["name"] for entry in found["entries"]]
        return self._names[key]

    def keyframe(self, k: int) -> tuple[dict[str, Any], Callable[[int], bytes]]:
        """The tree of keyframe `k`, and what reads its buffers; the last one asked for is remembered.

        All of it is read: what is damaged is told before any of it is put in place.
        """
        if self._frames is None or self._frames[0] != k:
            tree, read = self.trace.keyframe(k)
            with contextlib.suppress(IndexError):  # of none at all
                read(0)
            self._frames = (k, tree, read)
        return self._frames[1], self._frames[2]

    def digest(self, k: int) -> str:
        """The digest of the optimizers' state at keyframe `k`."""
        return self.trace.keyframe(k)[0]["digest"]

    def keyframe_layout(self, k: int) -> PackedLayout:
        """How the weights of keyframe `k` are packed."""
        return PackedLayout.of(self.keyframe(k)[0]["layout"])

    def holes(self, k: int) -> list[str]:
        """What the program had at the keyframe before step `k` that could not be recorded."""
        frame = self.trace.keyframe_at_or_before(k)
        return [] if frame is None else list(self.keyframe(frame)[0]["holes"])

    @property
    def compiled(self) -> tuple[int, ...]:
        """The steps at which torch.compile compiled something, as far as the last keyframe knows."""
        frames = self.trace.keyframes
        return tuple(self.keyframe(frames[-1])[0].get("compiled", ())) if frames else ()

    def source(self, path: str) -> bytes | None:
        """The recorded text of the program's file at `path`, or None if it is none of its own. Raise MissingDataError."""
        name = self.trace.manifest.program.sources.get(path)
        if name is None:
            return None
        target = (self.trace.path / name).resolve()
        if not target.is_relative_to((self.trace.path / "source").resolve()):
            raise MissingDataError(
                f"{self.trace.path}: the source {name!r} lies outside the trace", path=self.trace.path
            )
        try:
            data = target.read_bytes()
        except OSError as error:
            raise MissingDataError(f"{target}: {error}", path=self.trace.path) from None
        if not is_source(name, data):
            raise DamageError(f"{target} is damaged: it is not the source that was recorded", path=self.trace.path)
        return data


def next_row(trace: Trace) -> int:
    """Return the row at which a further session's states begin."""
    used = 0
    for facts in trace.sessions:
        lasts = [segment.steps.runs[-1][1] for segment in trace._chain.of_session(facts.session) if len(segment.steps)]
        if lasts:
            used = max(used, facts.first_row + max(lasts) + 2 - facts.first_step)
    return -(-used // ROW_ALIGNMENT) * ROW_ALIGNMENT


def find_state(trace: Trace, fingerprint: str) -> int | None:
    """Return the latest state with this fingerprint, None if there is none. # S1.3"""
    query = "select max(step) from steps where fingerprint = ?"
    found = trace.sql(query, [fingerprint]).fetchall()
    if found and found[0][0] is not None:
        return int(found[0][0]) + 1
    return trace.first_step if trace.fingerprint(trace.first_step) == fingerprint else None
