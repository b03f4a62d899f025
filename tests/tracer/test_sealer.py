from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.tracer.synthetic import make_trace
from tracer import addenda, manifest, segment_writer, segments
from tracer.errors import UsageError, WriteError
from tracer.process import started
from tracer.repair import repair
from tracer.sealer import TailSealer, _paced, seal
from tracer.tail import MAGIC, TailWriter, checksum, read_tail
from tracer.trace import open_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def everything(path: Path, truth, steps: int) -> None:
    """Fail unless the trace at `path` holds what was put into it."""
    with open_trace(path) as trace:
        assert trace.steps == steps
        for k in range(steps + 1):
            assert np.array_equal(trace.state(k)["encoder.weight"], truth.weight[k]), k
        for k in range(steps):
            assert np.array_equal(trace.batch(k)[0], truth.batches[k])
        for (key, k), value in truth.captures.items():
            assert np.array_equal(trace.captures[key][k].numpy(), value), (key, k)
        assert trace.sql("select count(*) from steps").fetchall() == [(steps,)]


class Crash(BaseException):
    """Stands for the process being killed: nothing handles it."""


def count_writes(path: Path, monkeypatch) -> int:
    """How many times sealing the trace at `path` puts a file into its place."""
    done: list[Path] = []
    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: (done.append(b), real(a, b)))
        seal(path)
    return len(done)


def test_sealing_again_after_a_crash_at_any_point(tmp_path, monkeypatch):
    make_trace(tmp_path / "count", 20, 3, 8, seal=False, roll=8, grads=True)
    writes = count_writes(tmp_path / "count", monkeypatch)
    assert writes > 30
    real = os.replace
    for fatal in range(1, writes, writes // 6):
        path = tmp_path / f"t{fatal}"
        truth = make_trace(path, 20, 3, 8, seal=False, roll=8, grads=True)
        left = [fatal]

        def replace_or_die(a, b, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            real(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_or_die)
            with pytest.raises(Crash):
                seal(path)
        # A reader in between sees all of it, too.
        everything(path, truth, 20)
        seal(path)
        everything(path, truth, 20)
        assert list((path / "tail").iterdir()) == []
        assert list(path.rglob(".*")) == []


def files(path: Path) -> dict[Path, bytes]:
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def record_of(folder: Path, header: dict, data: bytes) -> bytes:
    """One record as it stands in a tail."""
    tail = TailWriter(folder / "one.log")
    tail.append(header, [("data", [data], checksum([data]))])
    tail.close()
    return tail.path.read_bytes()[len(MAGIC) :]


def grown(tail: Path, data: bytes) -> Iterator[None]:
    """Let `tail` grow to `data`, in pieces that end within records."""
    piece = len(data) // 7 + 1
    for start in range(0, len(data), piece):
        with open(tail, "ab") as file:
            file.write(data[start : start + piece])
        yield


def test_what_is_done_ahead_makes_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_writer, "_FOLD_RECORDS", 4)
    path = tmp_path / "ahead"
    truth = make_trace(path, 40, 3, 8, seal=False, roll=16, grads=True)
    shutil.copytree(path, tmp_path / "once")
    TailSealer(tmp_path / "once").seal(0, rolled_only=False)
    tails = {tail: tail.read_bytes() for _, tail in sorted(segments.list_tails(path).items())}
    for tail in tails:
        tail.unlink()
    sealer = TailSealer(path)
    for tail, data in tails.items():
        for _ in grown(tail, data):
            sealer.seal(0, rolled_only=True)
            sealer.advance(0)
    assert [p.name for p in path.glob("tensors.zarr/keyframes/0-*")] == ["0-0"]
    sealer.seal(0, rolled_only=False)
    assert files(path) == files(tmp_path / "once")
    everything(path, truth, 40)


def test_what_is_said_again_is_what_is_sealed(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_writer, "_FOLD_RECORDS", 4)
    path = tmp_path / "t"
    truth = make_trace(path, 20, 3, 8, seal=False, roll=32, close=False)
    (tail,) = segments.list_tails(path).values()
    data, records = tail.read_bytes(), list(read_tail(tail))
    first = next(i for i, r in enumerate(records) if r.kind == "step")
    last = max(i for i, r in enumerate(records) if r.kind == "step")
    begun, ended = records[first - 1].end, records[last].end
    later = {"kind": "keyframe", "step": 0, "session": 0, "tree": {"a": 1}, "buffers": [3], "digest": "00"}
    sealer = TailSealer(path)
    tail.unlink()
    # A state is captured again before its step is over; a step is written again as the last of its file.
    for piece in (data[:begun], record_of(tmp_path, later, b"new") + data[begun:], data[records[last - 1].end : ended]):
        with open(tail, "ab") as file:
            file.write(piece)
        sealer.advance(0)
    sealer.seal(0, rolled_only=False)
    with open_trace(path) as trace:
        assert trace.steps == 20
        assert trace.keyframe(0)[0] == {"a": 1}
        assert trace.keyframe(0)[1](0) == b"new"
        assert np.array_equal(trace.batch(19)[0], truth.batches[19])


def test_a_crash_between_commit_and_removal(tmp_path, monkeypatch):
    truth = make_trace(tmp_path / "t", 20, 3, 8, seal=False)
    real = Path.unlink

    def no_tail(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".log":
            raise Crash
        real(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", no_tail)
        with pytest.raises(Crash):
            seal(tmp_path / "t")
    assert segments.list_tails(tmp_path / "t")
    everything(tmp_path / "t", truth, 20)
    seal(tmp_path / "t")
    assert not segments.list_tails(tmp_path / "t")
    everything(tmp_path / "t", truth, 20)


def test_committed_files_never_change(tmp_path):
    path = tmp_path / "t"
    make_trace(path, 60, 3, 8, seal=False, roll=16)
    TailSealer(path).seal(0, rolled_only=True)
    before = {p: p.read_bytes() for p in (path / "metrics").iterdir()}
    seal(path)
    seal(path)
    assert all(p.read_bytes() == data for p, data in before.items())


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):  # S0.4
    path = tmp_path / "t"
    truth = make_trace(path, 20, 3, 8, seal=False)

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(WriteError, match="No space left"):
            seal(path)
    seal(path)
    everything(path, truth, 20)


def test_a_killed_session_is_crashed_not_running(tmp_path):  # S2.1
    path = tmp_path / "t"
    truth = make_trace(path, 30, 3, 8, seal=False, close=False, roll=16)
    tail = max((path / "tail").iterdir())
    with open(tail, "ab") as file:
        file.write(b"torn")
    assert any("crashed" in line for line in seal(path))
    (session,) = manifest.read(path).sessions
    assert session.status == "crashed"
    with open_trace(path) as trace:
        ((last,),) = trace.sql("select max(time) from steps").fetchall()
        assert session.ended == pytest.approx(last, abs=1)
        assert trace.sql("select status from sessions").fetchall() == [("crashed",)]
    everything(path, truth, 30)


def test_the_close_record_says_how_a_session_ended(tmp_path):
    path = tmp_path / "t"
    make_trace(path, 10, 3, 8, seal=False)
    facts = manifest.read(path)
    facts.with_session(replace(facts.sessions[0], status="running", ended=None)).write(path)
    seal(path)
    assert manifest.read(path).sessions[0].status == "finished"


def test_a_live_session_is_left_alone(tmp_path):
    path = tmp_path / "t"
    make_trace(path, 10, 3, 8, seal=False, close=False)
    facts = manifest.read(path)
    import socket

    live = replace(facts.sessions[0], pid=os.getpid(), pid_started=started(os.getpid()), host=socket.gethostname())
    facts.with_session(live).write(path)
    with pytest.raises(UsageError, match="being recorded"):
        seal(path)
    assert segments.list_tails(path)


def test_a_damaged_tail_is_sealed_as_far_as_it_is_whole_and_kept(tmp_path):
    path = tmp_path / "t"
    truth = make_trace(path, 40, 3, 8, seal=False, roll=16)
    tail = min((path / "tail").iterdir())
    data = bytearray(tail.read_bytes())
    data[len(data) // 2] ^= 1
    tail.write_bytes(bytes(data))
    said = seal(path)
    assert any("damaged" in line for line in said)
    assert [p.name for p in (path / "tail").iterdir()] == ["0000-000000.damaged"]
    with open_trace(path) as trace:
        assert len(trace.recorded_steps) < 40
        for k in trace.stored_states:
            assert np.array_equal(trace.state(k)["encoder.weight"], truth.weight[k])
        for k in trace.recorded_steps:
            assert trace.record(k)["step"] == k


def test_repair_of_a_whole_trace_finds_nothing_to_do(tmp_path):
    make_trace(tmp_path / "t", 20, 3, 8, roll=8)
    assert repair(tmp_path / "t") == []


def test_repair_seals_and_builds_the_index_anew(tmp_path):
    path = tmp_path / "t"
    truth = make_trace(path, 20, 3, 8, seal=False, roll=8, close=False)
    done = repair(path)
    assert len(done) == 5
    assert done[-1].startswith("index.duckdb built")
    assert repair(path) == []
    (path / "index.duckdb").unlink()
    assert [line.split()[0] for line in repair(path)] == ["index.duckdb"]
    addenda.write_verdicts(path, [(3, "verified")])
    assert [line.split()[0] for line in repair(path)] == ["index.duckdb"]
    everything(path, truth, 20)


def test_repair_names_what_is_damaged(tmp_path):
    path = tmp_path / "t"
    make_trace(path, 20, 3, 8)
    for pattern in ("metrics/*.replay.parquet", "tensors.zarr/params/c/0/0", "tensors.zarr/keyframes/0-0/c/0"):
        (file,) = path.glob(pattern)
        data = bytearray(file.read_bytes())
        data[len(data) // 5] ^= 1
        file.write_bytes(bytes(data))
    next(path.glob("metrics/*.epochs.parquet")).unlink()
    (path / "tensors.zarr" / "fingerprints" / "zarr.json").write_text("{")
    found = repair(path)
    assert len(found) == 5
    assert all("damaged" in line or "missing" in line for line in found)


def start(path: Path, **more) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tracer.sealer", str(path), "--session", "0"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, **more)


def wait_for_commit(path: Path, name: str) -> None:
    """Wait until the sealer has committed segment `name`: on its own directory's changes, by its exit otherwise."""
    done = threading.Event()

    def look() -> None:
        while not (path / "metrics" / f"{name}.json").exists():
            select.select([], [], [], 0.02)
        done.set()

    threading.Thread(target=look, daemon=True).start()
    assert done.wait(60), f"{name} was not sealed"


def test_the_process_seals_what_is_rolled_and_at_the_end_the_rest(tmp_path):
    path = tmp_path / "t"
    truth = make_trace(path, 40, 3, 8, seal=False, roll=16)
    process = start(path)
    wait_for_commit(path, "0000-000001")
    assert not (path / "metrics" / "0000-000002.json").exists()
    # A Ctrl-C in the terminal reaches it as well: it must outlive the recording.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")
    assert (path / "index.duckdb").exists()
    assert segments.list_tails(path) == {}
    everything(path, truth, 40)


def test_the_process_outlives_a_recorder_that_is_killed(tmp_path):
    path = tmp_path / "t"
    truth = make_trace(path, 20, 3, 8, seal=False, close=False)
    code = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-m', 'tracer.sealer', {str(path)!r}, '--session', '0'],"
        " stdin=subprocess.PIPE); print('started', flush=True); time.sleep(600)"
    )
    recorder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert recorder.stdout.readline() == b"started\n"
    recorder.kill()
    # Its output ends when the last process that holds it has ended: the sealer.
    recorder.stdout.read()
    recorder.stdout.close()
    recorder.wait()
    assert manifest.read(path).sessions[0].status == "crashed"
    everything(path, truth, 20)


def test_the_process_loads_no_torch():
    code = (
        "import sys, tracer.sealer; print(sorted(m for m in ('torch', 'zarr', 'pandas', 'xarray') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_readers_while_a_sealer_works(tmp_path):
    """No torn read, no missing step, whatever is sealed meanwhile."""
    path = tmp_path / "t"
    truth = make_trace(path, 96, 3, 8, seal=False, roll=8)
    process = start(path)
    try:
        trace = open_trace(path)
        for round_ in range(40):
            trace.refresh()
            assert trace.steps == 96
            for k in (round_, 95 - round_, 8 * (round_ % 12)):
                assert np.array_equal(trace.state(k)["encoder.weight"], truth.weight[k])
                assert np.array_equal(trace.captures["bcl/win_rate"][k], truth.captures["bcl/win_rate", k])
                assert np.array_equal(trace.batch(k)[0], truth.batches[k])
            assert trace.sql("select count(*), sum(step) from steps").fetchall() == [(96, sum(range(96)))]
    finally:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


def test_states_of_many_kinds_of_words(tmp_path):
    """Layouts of other word sizes, and one that changes within a session."""
    from tracer.tail import TailWriter

    path = tmp_path / "t"
    make_trace(path, 0, 2, 4, seal=False)
    (path / "tail" / "0000-000000.log").unlink()
    tail = TailWriter(path / "tail" / "0000-000000.log")
    tail.append({"kind": "begin", "session": 0, "seq": 0, "first_step": 0, "first_row": 0, "time": 1.0})
    import torch
    import xxhash

    random = np.random.default_rng(0)
    kept: dict[int, bytes] = {}
    kinds = {0: ("bfloat16", 2, 16), 1: ("float64", 8, 32), 2: ("bool", 1, 8), 3: ("complex64", 4, 40)}

    def state(k: int, number: int) -> tuple[dict, list]:
        kept[k] = random.integers(0, 256 if kinds[number][0] != "bool" else 2, kinds[number][2], np.uint8).tobytes()
        proof = {"layout": number, "hashes": [xxhash.xxh3_64_intdigest(kept[k])], "fingerprint": f"{k + 1:016x}"}
        return {"session": 0, "step": k, **proof}, [("weights", [kept[k]], None)]

    for number, (dtype, word, size) in kinds.items():
        item = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
        entry = {"name": "w", "dtype": dtype, "shape": [size // item], "offset": 0, "nbytes": size, "param": True}
        tail.append({"kind": "layout", "layout": number, "word": word, "nbytes": size, "entries": [entry]})
        first = 12 * number
        header, sections = state(first, number)
        tail.append({"kind": "state", **header}, sections)
        for k in range(first, first + 12):
            header, sections = state(k + 1, number)
            logs = {"kept": True, "logs": {}, "captures": [], "loss": None, "time": 2.0}
            tail.append({"kind": "step", **header, **logs, "step": k}, sections)
    tail.append({"kind": "close", "status": "finished", "time": 3.0})
    tail.close()
    with open_trace(path) as trace:
        before = {k: {n: t.clone() for n, t in trace.state(k).items()} for k in kept}
    seal(path)
    with open_trace(path) as trace:
        assert list(trace.stored_states) == list(range(49))
        for k, data in kept.items():
            number = min((k) // 12, 3)
            assert trace.state(k)["w"].dtype == getattr(torch, kinds[number][0]), k
            assert trace.state(k)["w"].reshape(-1).view(torch.uint8).numpy().tobytes() == data
            assert before[k]["w"].reshape(-1).view(torch.uint8).numpy().tobytes() == data
    facts = json.loads((path / "tensors.zarr" / "params.1" / "zarr.json").read_text())
    assert facts["data_type"] == "uint64"


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_it_yields_less_the_more_tails_wait(tmp_path):
    make_trace(tmp_path / "t", steps=160, inputs=8, features=4, roll=32, seal=False)
    base, waited, found = niceness(), [], []

    def paced(waiting, act):
        waited.append(waiting)
        return _paced(waiting, lambda: (found.append(niceness() - base), act())[1])

    assert len(TailSealer(tmp_path / "t", paced).seal(0, rolled_only=True)) == 5
    assert waited == [5, 4, 3, 2, 1]
    assert found == [min(nice, 19 - base) for nice in (0, 0, 5, 10, 15)]
    assert niceness() == base
