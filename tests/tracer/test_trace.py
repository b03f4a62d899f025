from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch

from tests.tracer.synthetic import BATCH, MATRICES, VECTORS, Truth, make_trace
from tracer.errors import (
    DamageError,
    FormatVersionError,
    MissingDataError,
    NameUnknownError,
    NotATraceError,
    StepError,
)
from tracer.sealer import TailSealer, seal
from tracer.segments import name_of
from tracer.trace import Trace, open_trace

STEPS, CUT, MORE = 150, 119, 89


@pytest.fixture(scope="module", params=["tails", "mixed", "sealed"])
def made(request, tmp_path_factory) -> tuple[Trace, Truth]:
    """A resumed run (S1.3): session 0 has steps 0..149, session 1 goes on at 119 for 89 steps, to 207."""
    path = tmp_path_factory.mktemp(request.param) / "t"
    truth = make_trace(path, STEPS, 6, 20, seal=False, grads=True, sessions=((CUT, MORE),), roll=32, nan_at=7)
    if request.param == "mixed":
        TailSealer(path).seal(0, rolled_only=True)
        TailSealer(path).seal(1, rolled_only=True)
    elif request.param == "sealed":
        seal(path)
    with open_trace(path) as trace:
        yield trace, truth


def test_length_and_sessions(made):
    trace, _ = made
    assert (trace.first_step, trace.steps, len(trace)) == (0, CUT + MORE, CUT + MORE)
    assert [s.session for s in trace.sessions] == [0, 1]
    assert list(trace.recorded_steps) == list(range(CUT + MORE))
    assert list(trace.stored_states) == list(range(CUT + MORE + 1))


def test_every_state_is_bit_for_bit(made):  # C3
    trace, truth = made
    for k in range(CUT + MORE + 1):
        state = trace.state(k)
        assert state["encoder.weight"].numpy().tobytes() == truth.weight[k].tobytes()
        assert state["encoder.bias"].numpy().tobytes() == truth.bias[k].tobytes()
        assert state.fingerprint == trace.fingerprint(k)
        assert len(state.fingerprint) == 16
    assert list(state) == ["encoder.weight", "encoder.bias"]
    assert state["encoder.weight"].shape == (6, 20)


def test_states_own_their_memory(made):
    trace, truth = made
    trace.state(5)["encoder.weight"].zero_()
    assert np.array_equal(trace.state(5)["encoder.weight"], truth.weight[5])


def test_every_batch_comes_back(made):
    trace, truth = made
    for k in range(CUT + MORE):
        images, labels = trace.batch(k)
        assert np.array_equal(images, truth.batches[k])
        assert labels.dtype == torch.int64
        assert len(labels) == len(images) == trace.record(k)["batch_size"]


def test_every_capture_comes_back(made):  # S4.3
    trace, truth = made
    keys = [f"bcl/{name}" for name in (*VECTORS, *MATRICES, "image_coverage")]
    assert sorted(trace.captures) == sorted(keys)
    for key in keys:
        series = trace.captures[key]
        assert series.steps.tolist() == list(range(CUT + MORE))
        for k in (0, 31, 32, 49, CUT - 1, CUT, 207):
            assert np.array_equal(series[k].numpy(), truth.captures[key, k]), (key, k)
    targets = trace.captures["bcl/som_targets"]
    assert (targets.shape, targets.dims, targets.dtype) == ((6, 20), None, "float32")
    read = targets.read(range(20, 140))
    assert all(np.array_equal(read[i], truth.captures["bcl/som_targets", 20 + i]) for i in range(120))
    assert 3 in targets
    assert 999 not in trace.captures
    assert 5000 not in [*targets.steps]


def test_a_short_batch_is_filled_up_with_nan(made):
    trace, _ = made
    coverage = trace.captures["bcl/image_coverage"]
    assert coverage.dims == ("sample",)
    assert coverage.shape == (BATCH,)
    assert coverage[49].shape == (BATCH - 5,)
    read = coverage.read([48, 49, 50])
    assert read.shape == (3, BATCH)
    assert np.isnan(read[1, -5:]).all()
    assert not np.isnan(read[[0, 2]]).any()


def test_reading_out_of_order_and_repeatedly(made):
    trace, truth = made
    wanted = [140, 3, 3, 118, 119, 60]
    read = trace.captures["bcl/win_rate"].read(wanted)
    assert all(np.array_equal(row, truth.captures["bcl/win_rate", k]) for row, k in zip(read, wanted, strict=True))


def test_a_weight_row_over_time(made):  # S4.7
    trace, truth = made
    steps, values = trace.weights("encoder.weight", rows=3, steps=range(10, 200))
    assert steps.tolist() == list(range(10, 200))
    assert values.shape == (190, 20)
    assert all(np.array_equal(values[i], truth.weight[k][3]) for i, k in enumerate(steps))
    steps, values = trace.weights("encoder.weight", rows=[5, 0], steps=slice(150, None))
    assert values.shape == (len(steps), 2, 20)
    assert np.array_equal(values[0], truth.weight[150][[5, 0]])
    _, values = trace.weights("encoder.bias")
    assert values.shape == (CUT + MORE + 1, 6)


def test_gradients(made):
    trace, truth = made
    grads = trace.grads(140)
    assert np.array_equal(grads["encoder.weight"], truth.weight[141])


def test_keyframes(made):
    trace, truth = made
    assert trace.keyframes == [0, 100, 200]
    tree, read = trace.keyframe(100)
    assert tree["v"][1] == ["lr", float("inf")]
    assert read(0) == truth.weight[100].tobytes() or read(0)
    assert trace.keyframe_at_or_before(207) == 200
    assert trace.keyframe_at_or_before(118) == 100
    # Of session 1 there is none before 200: that of session 0 does not lead there.
    assert trace.keyframe_at_or_before(150) is None
    with pytest.raises(MissingDataError):
        trace.keyframe(101)


def test_blobs(made):
    trace, truth = made
    assert len(truth.blobs) == 2
    for digest, data in truth.blobs.items():
        assert trace.blob(digest) == trace.blob(digest, near=130) == data
    with pytest.raises(MissingDataError):
        trace.blob("0" * 32)


@pytest.mark.parametrize("k", [-1, 10**9])
def test_steps_that_do_not_exist(made, k):
    trace, _ = made
    for ask in (trace.state, trace.batch, trace.record, trace.grads, trace.has_state):
        with pytest.raises(StepError):
            ask(k)
    with pytest.raises(StepError):
        trace.record(trace.steps)
    assert trace.has_state(trace.steps)


def test_names_that_do_not_exist(made):
    trace, _ = made
    with pytest.raises(NameUnknownError, match="bcl/win_rate"):
        trace.captures["nope"]
    with pytest.raises(NameUnknownError, match=r"encoder\.weight"):
        trace.state(3)["nope"]
    with pytest.raises(NameUnknownError):
        trace.weights("nope")
    with pytest.raises(StepError):
        trace.weights("encoder.weight", rows=6)
    with pytest.raises(MissingDataError):
        trace.piece(3, "nope")


def test_info_and_status(made):
    trace, _ = made
    info = trace.info()
    assert info["steps"] == CUT + MORE
    assert info["sessions"] == 2
    assert info["keyframes"] == 3
    assert info["replayable"]
    assert info["script"] == "train.py"
    assert info["bytes_per_step"] == info["bytes"] / (CUT + MORE)
    assert trace.status()["total_steps"] == STEPS


def test_xarray(made):  # B8
    trace, truth = made
    data = trace.xarray()
    assert data["loss"].sel(step=3).item() == truth.loss[3]
    assert np.array_equal(data["bcl/som_targets"].sel(step=130).values, truth.captures["bcl/som_targets", 130])
    assert np.array_equal(
        data["encoder.weight"].isel(state=[5, 120])[:, 2].values, [truth.weight[k][2] for k in (5, 120)]
    )
    assert data["bcl/image_coverage"].dims == ("step", "sample")
    assert data["bcl/win_rate"].mean("step").shape == (6,)


def test_readers_in_many_threads(made):
    trace, truth = made
    wrong: list[object] = []

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for k in random.integers(0, CUT + MORE, 30).tolist():
            try:
                right = np.array_equal(trace.state(k)["encoder.weight"], truth.weight[k])
                right &= np.array_equal(trace.batch(k)[0], truth.batches[k])
                right &= trace.sql("select count(*) from steps where step < ?", [k]).fetchall() == [(k,)]
                if not right:
                    wrong.append(k)
            except Exception as error:  # noqa: BLE001 -- reported by the main thread
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_plain_zarr_sees_the_tensors(tmp_path):  # B8
    import zarr

    truth = make_trace(tmp_path / "t", 40, 6, 20)
    group = zarr.open(str(tmp_path / "t" / "tensors.zarr"), mode="r")
    assert group["captures/bcl/som_targets"].metadata.dimension_names == ("step", "feature", "input")
    assert np.array_equal(group["captures/bcl/som_targets"][7], truth.captures["bcl/som_targets", 7])
    assert np.array_equal(group["samples/float32-20"][: BATCH * 2], np.concatenate([truth.batches[k] for k in (0, 1)]))
    params = group["params"]
    assert len(params.attrs["decoding"]) == 3
    entry = params.attrs["layout"]["entries"][0]
    first = np.ascontiguousarray(params[0]).view(np.uint8)[entry["offset"] : entry["offset"] + entry["nbytes"]]
    assert np.array_equal(first.view(np.float32).reshape(entry["shape"]), truth.weight[0])


def test_every_nth_step_kept(tmp_path):  # S0.1
    truth = make_trace(tmp_path / "t", 50, 4, 10, every=10)
    trace = open_trace(tmp_path / "t")
    kept = [0, 9, 19, 29, 39, 49]
    assert [s for (s,) in trace.sql("select step from steps order by step").fetchall()] == kept
    assert trace.captures["bcl/win_rate"].steps.tolist() == kept
    assert list(trace.stored_states) == [0, *(k + 1 for k in kept)]
    for k in trace.stored_states:
        assert np.array_equal(trace.state(k)["encoder.weight"], truth.weight[k])
    # Replay needs every step.
    assert np.array_equal(trace.batch(23)[0], truth.batches[23])
    assert trace.fingerprint(23)
    with pytest.raises(MissingDataError):
        trace.captures["bcl/win_rate"][23]


def test_a_live_run_grows(tmp_path):  # S0.2 S2.1
    make_trace(tmp_path / "t", 40, 4, 10, seal=False, close=False, roll=16)
    tail = tmp_path / "t" / "tail" / f"{name_of((0, 2))}.log"
    whole = tail.read_bytes()
    tail.write_bytes(whole[: len(whole) // 2])
    trace = open_trace(tmp_path / "t")
    seen = trace.steps
    assert 32 < seen < 40
    assert trace.sql("select count(*) from steps").fetchall() == [(seen,)]
    with open(tail, "ab") as file:
        file.write(whole[len(whole) // 2 :])
    assert trace.refresh()
    assert not trace.refresh()
    assert trace.steps == 40
    assert trace.sql("select count(*) from features").fetchall() == [(40 * 4,)]


def test_sealing_under_a_reader_changes_nothing(tmp_path):
    truth = make_trace(tmp_path / "t", 60, 4, 10, seal=False, roll=16)
    trace = open_trace(tmp_path / "t")
    before = trace.sql("select * from steps order by step").fetchall()
    seal(tmp_path / "t")
    for k in range(61):
        assert np.array_equal(trace.state(k)["encoder.weight"], truth.weight[k])
    assert np.array_equal(trace.batch(33)[0], truth.batches[33])
    trace.refresh()
    for k in range(61):
        assert np.array_equal(trace.state(k)["encoder.weight"], truth.weight[k])
    assert np.array_equal(trace.batch(33)[0], truth.batches[33])
    assert trace.sql("select * from steps order by step").fetchall() == before


def test_metrics_only(tmp_path):
    make_trace(tmp_path / "t", 20, 4, 10, weights=False, captures=False)
    trace = open_trace(tmp_path / "t")
    assert not trace.has_state(3) or list(trace.stored_states) == [0]
    assert trace.fingerprint(12)
    assert dict(trace.captures) == {}
    with pytest.raises(MissingDataError):
        trace.weights("encoder.weight", steps=range(5, 9))


def test_foreign_and_broken_directories(tmp_path):
    with pytest.raises(NotATraceError):
        open_trace(tmp_path)
    with pytest.raises(NotATraceError):
        open_trace(tmp_path / "nothing")
    make_trace(tmp_path / "t", 3, 2, 4)
    facts = json.loads((tmp_path / "t" / "trace.json").read_text())
    (tmp_path / "t" / "trace.json").write_text(json.dumps({**facts, "format": 999}))
    with pytest.raises(FormatVersionError, match="newer"):
        open_trace(tmp_path / "t")
    (tmp_path / "t" / "trace.json").write_text("{")
    with pytest.raises(NotATraceError):
        open_trace(tmp_path / "t")


def test_damage_names_step_and_array(tmp_path):
    make_trace(tmp_path / "t", 40, 4, 10)
    shard = next((tmp_path / "t" / "tensors.zarr" / "params" / "c").rglob("*"))
    shard = next(p for p in (tmp_path / "t" / "tensors.zarr" / "params" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(bytes(data))
    trace = open_trace(tmp_path / "t")
    with pytest.raises(DamageError, match="state 0") as caught:
        trace.state(0)
    assert (caught.value.step, caught.value.tensor) == (0, "params")
    # What does not lean on the damaged bytes is still read.
    assert trace.state(40)


def test_a_damaged_parquet_segment_is_noticed(tmp_path):
    make_trace(tmp_path / "t", 20, 4, 10)
    replay = next((tmp_path / "t" / "metrics").glob("*.replay.parquet"))
    data = bytearray(replay.read_bytes())
    data[len(data) // 2] ^= 1
    replay.write_bytes(bytes(data))
    with pytest.raises(DamageError, match="0 to 19"):
        open_trace(tmp_path / "t").record(3)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"session": 0}'])
def test_a_damaged_commit_is_noticed(tmp_path, text):
    make_trace(tmp_path / "t", 3, 2, 4)
    next((tmp_path / "t" / "metrics").glob("*.json")).write_text(text)
    with pytest.raises(DamageError):
        open_trace(tmp_path / "t")


def test_nothing_recorded_yet(tmp_path):
    make_trace(tmp_path / "t", 0, 2, 4, seal=False, close=False)
    trace = open_trace(tmp_path / "t")
    assert trace.steps == 0
    assert trace.sql("select * from steps").fetchall() == []
    with pytest.raises(StepError):
        trace.record(0)
