"""Makes traces out of nothing but tail records: the shape of a recorded BCL run, without training anything."""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from tracer import manifest, origin
from tracer.manifest import Manifest, Program, SessionFacts
from tracer.tail import TailWriter, checksum

VECTORS = (
    "win_rate",
    "grad_magnitude",
    "som_magnitude",
    "feature_novelty",
    "effective_win",
    "gradient_weight",
    "contender_weight",
    "attraction_weight",
)
MATRICES = ("som_targets", "grad_masked")
BATCH = 32


@dataclass
class Truth:
    """What was put into a trace: by step, as arrays."""

    path: Path
    weight: dict[int, np.ndarray] = field(default_factory=dict)
    bias: dict[int, np.ndarray] = field(default_factory=dict)
    captures: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    batches: dict[int, np.ndarray] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


def make_trace(
    path: Path | str,
    steps: int = 500,
    features: int = 64,
    inputs: int = 784,
    weights: bool = True,
    captures: bool = True,
    seal: bool = True,
    *,
    grads: bool = False,
    sessions: tuple[tuple[int, int], ...] = (),
    roll: int = 128,
    every: int = 1,
    dense: range = range(0),
    remember: bool = True,
    per_epoch: int = 50,
    close: bool = True,
    nan_at: int | None = None,
    seed: int = 0,
) -> Truth:
    """Write a trace of `steps` steps at `path`; `sessions` are further ones as (first_step, steps).

    `dense` steps are kept whatever `every` says. Without `remember` nothing is held in memory, for long traces.
    """
    path = Path(path)
    for name in ("tail", "metrics", "source"):
        (path / name).mkdir(parents=True, exist_ok=True)
    facts = Manifest(
        id=f"{seed:032x}",
        created=time.time(),
        detail="replay",
        weights=weights,
        every=every,
        program=Program("script", path="train.py", argv=("--epochs", "3"), cwd="."),
        environment={"torch": "2.11"},
    )
    truth = Truth(path)
    run = _Run(truth, features, inputs, weights, captures, grads, roll, every, per_epoch, nan_at, seed)
    run.dense, run.remembers = dense, remember
    row = 0
    status = "finished" if close else "running"
    for number, (first, count) in enumerate(((0, steps), *sessions)):
        started = time.time()
        last = number == len(sessions)
        session = SessionFacts(number, started, first, row, socket.gethostname(), 2**22 + 17, 0.0, status="running")
        facts = origin.signed(facts.with_session(session))
        facts.write(path)
        run.session(number, first, count, row, close=close or not last)
        ended = time.time() if close or not last else None
        facts = facts.with_session(
            SessionFacts(
                number,
                started,
                first,
                row,
                socket.gethostname(),
                2**22 + 17,
                0.0,
                ended=ended,
                status=status if last else "finished",
            )
        )
        facts.write(path)
        row += -(-(count + 1) // manifest.ROW_ALIGNMENT) * manifest.ROW_ALIGNMENT
    (path / "status.json").write_text(json.dumps({"current_step": steps, "total_steps": steps}))
    if seal:
        from tracer.sealer import seal as seal_trace

        seal_trace(path)
    return truth


class _Run:
    def __init__(self, truth, features, inputs, weights, captures, grads, roll, every, per_epoch, nan_at, seed):
        self.truth, self.d, self.f = truth, features, inputs
        self.weights, self.captures, self.grads = weights, captures, grads
        self.roll, self.every, self.per_epoch, self.nan_at = roll, every, per_epoch, nan_at
        self.random = np.random.default_rng(seed)
        self.pool: list[np.ndarray] = []
        size = 4 * features * inputs
        bias_at = -(-size // 8) * 8
        self.nbytes = -(-(bias_at + 4 * features) // 8) * 8
        self.layout = {
            "kind": "layout",
            "layout": 0,
            "word": 4,
            "nbytes": self.nbytes,
            "entries": [
                _entry("encoder.weight", [features, inputs], 0, size),
                _entry("encoder.bias", [features], bias_at, 4 * features),
            ],
        }
        self.images = self.random.random((BATCH * per_epoch, inputs), np.float32)
        self.w = self.random.standard_normal((features, inputs)).astype(np.float32) * 0.05
        self.b = np.zeros(features, np.float32)
        self.velocity = np.zeros_like(self.w)
        self.dense, self.remembers = range(0), True

    def packed(self) -> bytes:
        data = bytearray(self.nbytes)
        for entry, tensor in zip(self.layout["entries"], (self.w, self.b), strict=True):
            data[entry["offset"] : entry["offset"] + entry["nbytes"]] = tensor.tobytes()
        return bytes(data)

    def session(self, number: int, first: int, count: int, row: int, *, close: bool) -> None:
        if first:
            self.w, self.b = self.truth.weight[first].copy(), self.truth.bias[first].copy()
        self.number, self.row, self.sequence = number, row, 0
        tail = self.begin(first)
        self.remember(first)
        state = {"kind": "state", "step": first, "session": number, "layout": 0}
        tail.append(state | self.proof(), [("weights", [self.packed()], None)])
        blob = b"generator" * 40 + bytes([number])
        tail.append({"kind": "blob", "blob": xxhash.xxh3_128_hexdigest(blob)}, [("data", [blob], checksum([blob]))])
        self.truth.blobs[xxhash.xxh3_128_hexdigest(blob)] = blob
        for done, k in enumerate(range(first, first + count), 1):
            if k % 100 == 0:
                self.keyframe(tail, k)
            self.step(tail, k)
            if (k + 1) % self.per_epoch == 0 or done == count:
                self.epoch(tail, k)
            if done % self.roll == 0:
                self.sequence += 1
                newer = self.begin(k + 1)
                tail.append({"kind": "roll"})
                tail.close()
                tail = newer
        if close:
            tail.append({"kind": "close", "status": "finished", "time": time.time()})
        tail.close()

    def begin(self, step: int) -> TailWriter:
        tail = TailWriter(self.truth.path / "tail" / f"{self.number:04d}-{self.sequence:06d}.log")
        facts = {"session": self.number, "seq": self.sequence, "first_step": step, "first_row": self.row}
        tail.append({"kind": "begin", **facts, "time": time.time()})
        tail.append(self.layout)
        return tail

    def remember(self, k: int) -> None:
        if self.remembers:
            self.truth.weight[k], self.truth.bias[k] = self.w.copy(), self.b.copy()

    def proof(self) -> dict:
        hashes = [xxhash.xxh3_64_intdigest(t.tobytes()) for t in (self.w, self.b)]
        return {"hashes": hashes, "fingerprint": xxhash.xxh3_64_hexdigest(struct.pack("<2Q", *hashes))}

    def keyframe(self, tail: TailWriter, k: int) -> None:
        buffers = [self.w.tobytes(), self.b.tobytes(), self.velocity.tobytes()]
        tree = {"$": "dict", "v": [["w", {"$": "bytes", "b": 0}], ["lr", float("inf")]]}
        header = {"kind": "keyframe", "step": k, "session": self.number, "tree": tree, "digest": "00"}
        tail.append(header | {"buffers": [len(b) for b in buffers]}, [("data", buffers, checksum(buffers))])

    def step(self, tail: TailWriter, k: int) -> None:
        index = k % self.per_epoch
        size = BATCH if index < self.per_epoch - 1 else BATCH - 5
        ids = np.arange(index * BATCH, index * BATCH + size, dtype=np.uint32)
        self.samples(tail, ids)
        kept = index == 0 or (index + 1) % self.every == 0 or k in self.dense
        if kept or self.remembers:
            self.move()
        if self.remembers:
            self.remember(k + 1)
            self.truth.batches[k] = self.images[ids]
        loss = float("nan") if k == self.nan_at else 1.0 / (k + 1)
        self.truth.loss[k] = loss
        described, sections = self.capture(k, size) if self.captures and kept else ([], [])
        header = {
            "kind": "step",
            "step": k,
            "session": self.number,
            "kept": kept,
            "epoch": k // self.per_epoch,
            "batch_index": index,
            "batch_size": size,
            "loss": loss,
            "lr": 1e-3,
            "grad_norm": 0.5,
            "time": time.time(),
            "duration": 0.001,
            **self.proof(),
            "layout": 0,
            "rng_hash": "0" * 16,
            "left": index == 0,
            "batch": {"$": "tuple", "v": [self.rows(size), self.labels(size)]},
            "inline": [8 * size],
            "rng": None,
            "logs": {"accuracy": k / 1000, "Accuracy": 1.0},
            "captures": described,
        }
        labels = ids.astype(np.int64).tobytes()
        sections += [("ids0", [ids.tobytes()], checksum([ids.tobytes()])), ("inline", [labels], checksum([labels]))]
        if self.weights and kept:
            sections.append(("weights", [self.packed()], None))
        if self.grads and kept:
            sections.append(("grads", [self.packed()], checksum([self.packed()])))
        tail.append(header, sections)

    def move(self) -> None:
        self.velocity = 0.9 * self.velocity + self.random.standard_normal(self.w.shape).astype(np.float32)
        self.w -= np.float32(1e-4) * self.velocity.astype(np.float32)
        self.b += np.float32(1e-3)

    def rows(self, size: int) -> dict:
        return {"$": "rows", "pool": f"float32-{self.f}", "i": 0, "shape": [size, self.f], "as": "tensor"}

    def labels(self, size: int) -> dict:
        return {"$": "tensor", "b": 0, "dtype": "int64", "shape": [size], "grad": False, "device": "cpu"}

    def samples(self, tail: TailWriter, ids: np.ndarray) -> None:
        fresh = [self.images[i] for i in ids if i >= len(self.pool)]
        if not fresh:
            return
        rows = [r.tobytes() for r in fresh]
        facts = {"pool": f"float32-{self.f}", "dtype": "float32", "shape": [self.f], "first": len(self.pool)}
        tail.append({"kind": "samples", **facts, "count": len(rows)}, [("data", rows, checksum(rows))])
        self.pool += fresh

    def capture(self, k: int, size: int) -> tuple[list, list]:
        shown = {f"bcl/{n}": (self.vector(i, k), None) for i, n in enumerate(VECTORS)}
        targets = (0.9 * self.w.mean(0) + 0.1 * self.w).astype(np.float32)
        shown |= {
            "bcl/som_targets": (targets, None),
            "bcl/grad_masked": (1e-6 * self.velocity.astype(np.float32), None),
        }
        shown["bcl/image_coverage"] = (self.random.random(size, np.float32), ["sample"])
        described, sections = [], []
        for i, (key, (value, dims)) in enumerate(shown.items()):
            if self.remembers:
                self.truth.captures[key, k] = value
            described.append({"key": key, "dtype": "float32", "shape": list(value.shape), "dims": dims})
            sections.append((f"capture{i}", [value.tobytes()], checksum([value.tobytes()])))
        return described, sections

    def vector(self, i: int, k: int) -> np.ndarray:
        phase = np.arange(self.d, dtype=np.float32) / self.d
        return np.maximum(0, phase * np.exp(-k * phase / 200) * (1 + 0.1 * i)).astype(np.float32)

    def epoch(self, tail: TailWriter, k: int) -> None:
        first = k - k % self.per_epoch
        count = k - first + 1
        facts = dict.fromkeys(["offered", "kept", "written"], count) | {"dropped": 0, "samples": count * BATCH}
        tail.append(
            {"kind": "epoch", "session": self.number, "epoch": k // self.per_epoch, "first_step": first, "last_step": k}
            | facts
        )


def _entry(name: str, shape: list[int], offset: int, nbytes: int) -> dict:
    return {"name": name, "dtype": "float32", "shape": shape, "offset": offset, "nbytes": nbytes, "param": True}
