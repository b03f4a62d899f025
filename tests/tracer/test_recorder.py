"""Recording as a user sees it: what is kept, counted, survived and left behind (C1)."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import math
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from torch.optim import optimizer as optimizer_module
from torch.utils.data import dataloader

import tracer
from tests.tracer.training import data, loader, make, train, train_without_loader
from tracer import active, frames, journal, keyframe, manifest, rng, walk
from tracer.batches import BatchEncoder
from tracer.errors import MissingDataError, ProgramError, StepError, UsageError, WriteError
from tracer.registry import StateReader
from tracer.steps import StepRecorder
from tracer.tail import TailWriter

pytestmark = pytest.mark.usefixtures("unsealed")


@pytest.fixture(autouse=True)
def _seeded():
    before = rng.capture_state()
    yield
    rng.restore_state(before)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.trace"


def rows(path, query):
    with tracer.open_trace(path) as trace:
        return trace.sql(query).fetchall()


def status(path):
    return [s.status for s in manifest.read(path).sessions]


class TestWhatIsKept:
    def test_every_tenth_of_fifty(self, path):  # S0.1
        with tracer.record(path, every=10):
            train(epochs=1, samples=200)
        kept = rows(path, "select batch_index + 1 from steps order by step")
        assert [k for (k,) in kept] == [1, 10, 20, 30, 40, 50]

    def test_the_first_of_each_epoch_again(self, path):  # S0.1
        with tracer.record(path, every=3):
            train(epochs=2)
        assert rows(path, "select epoch, batch_index from steps order by step") == [(0, 0), (0, 2), (1, 0), (1, 2)]

    def test_all_steps_can_be_replayed_though_few_are_kept(self, path):
        with tracer.record(path, every=5):
            train(epochs=1)
        with tracer.open_trace(path) as trace:
            assert trace.steps == 5
            assert all(len(trace.batch(k)[0]) == 4 for k in range(5))

    def test_counts_by_epoch_in_sql_and_in_the_log(self, path, caplog):  # S0.3
        with caplog.at_level(logging.INFO, "rewind"), tracer.record(path, every=2):
            train(epochs=2, samples=18)
        query = "select epoch, first_step, last_step, samples, offered, kept, written, dropped from epochs order by 1"
        assert rows(path, query) == [(0, 0, 4, 18, 5, 3, 3, 0), (1, 5, 9, 18, 5, 3, 3, 0)]
        assert "epoch 0: offered 5, kept 3, wrote 3, dropped 0" in caplog.text
        assert "epoch 1: offered 5, kept 3, wrote 3, dropped 0" in caplog.text

    @pytest.mark.parametrize("detail", ["metrics", "replay", "full", None])
    def test_detail_levels(self, path, detail):
        with tracer.record(path, detail=detail):
            model = train(epochs=1)
        with tracer.open_trace(path) as trace:
            assert trace.steps == 5
            assert trace.has_state(3) == (detail in ("full", None))
            if detail in ("full", None):
                assert torch.equal(trace.state(5)["weight"], model.weight.detach())
            if detail == "metrics":
                assert trace.keyframes == []
                with pytest.raises(MissingDataError):
                    trace.batch(0)
            else:
                assert trace.keyframes[0] == 0
                assert trace.batch(0)[0].shape == (4, 3)
            if detail == "full":
                assert trace.grads(2)["weight"].shape == (1, 3)

    def test_keyframes_as_asked_for(self, path):
        with tracer.record(path, keyframe_every=3):
            train(epochs=2)
        with tracer.open_trace(path) as trace:
            assert {0, 3, 6, 9} <= set(trace.keyframes)

    def test_the_batches_are_those_that_the_loop_got(self, path):
        seen = []
        with tracer.record(path):
            model, optimizer = make()
            for x, y in loader():
                seen.append((x.clone(), y.clone()))
                model(x).sum().backward()
                optimizer.step()
                x.zero_()  # the loop may overwrite its batch
        with tracer.open_trace(path) as trace:
            for k, (x, y) in enumerate(seen):
                got = trace.batch(k)
                assert torch.equal(got[0], x)
                assert torch.equal(got[1], y)

    def test_a_loop_without_a_loader(self, path):
        with tracer.record(path):
            model = train_without_loader(6)
        with tracer.open_trace(path) as trace:
            assert trace.steps == 6
            assert torch.equal(trace.state(6)["weight"], model.weight.detach())
            assert all(len(trace.batch(k)[0]) == 4 for k in range(6))
        rates = [lr for (lr,) in rows(path, "select lr from steps order by step")]
        assert rates == [0.05 / (1 + it) for it in range(6)]

    def test_each_sample_is_stored_once(self, path):
        with tracer.record(path):
            model, optimizer = make()
            wide = torch.randn(8, 100)
            pairs = torch.utils.data.TensorDataset(wide)
            narrow = torch.nn.Linear(100, 3)
            for _ in range(5):
                for (x,) in torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True):
                    model(narrow(x)).sum().backward()
                    optimizer.step()
        with tracer.open_trace(path) as trace:
            assert trace.sample_counts == {"float32-100": 8}


class TestNumbers:
    def test_both_means_of_an_epoch_with_a_short_last_batch(self, path):  # S1.1
        losses = []
        with tracer.record(path):
            train(epochs=1, samples=9, each=lambda k, m, loss: losses.append(loss.item()))
        sizes = [4, 4, 1]
        (got,) = rows(path, "select loss_batch_mean, loss_sample_mean, samples from epochs")
        by_batch = sum(losses) / 3
        by_sample = sum(n * v for n, v in zip(sizes, losses, strict=True)) / 9
        assert got == (pytest.approx(by_batch), pytest.approx(by_sample), 9)
        assert abs(by_batch - by_sample) > 1e-3

    def test_a_pass_over_more_than_is_trained_on_is_not_the_batchs_size(self, path):  # S1.1
        """As in PPO: a value pass over the whole rollout, with gradients on, then steps on parts of it."""
        model = torch.nn.Linear(3, 1)
        criterion = torch.nn.MSELoss()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with tracer.record(path):
            for _rollout in range(2):
                observations = torch.rand(64, 3)
                returns = model(observations).detach()
                for part in torch.arange(64).split(16):
                    criterion(model(observations[part]).repeat(3, 1), returns[part].repeat(3, 1)).backward()
                    optimizer.step()
        assert {size for (size,) in rows(path, "select batch_size from steps")} == {16}

    def test_logged_scalars_and_a_batch_size_of_ones_own(self, path):  # S1.1
        with tracer.record(path):
            train(epochs=1, samples=8, each=lambda k, m, loss: tracer.log(acc=float(k), batch_size=10 - k))
        assert rows(path, "select acc, batch_size from steps order by step") == [(0.0, 10), (1.0, 9)]
        ((mean,),) = rows(path, "select acc_sample_mean from epochs")
        assert mean == pytest.approx(9 / 19)

    @pytest.mark.parametrize(("bad", "name"), [(math.nan, "isnan"), (math.inf, "isinf"), (-math.inf, "isinf")])
    def test_nan_and_infinity_are_kept_and_counted(self, path, bad, name):  # S1.2
        with tracer.record(path):
            model, optimizer = make()
            for i, (x, y) in enumerate(loader()):
                optimizer.zero_grad()
                loss = (model(x) - y).mean() + (bad if i == 2 else 0.0)
                loss.backward()
                optimizer.step()
                tracer.log(other=bad if i == 3 else 1.0)
        assert rows(path, f"select step from steps where {name}(loss)") == [(2,)]
        assert rows(path, f"select step from steps where {name}(other)") == [(3,)]
        ((value,),) = rows(path, "select loss from steps where step = 2")
        assert value == bad or math.isnan(bad)
        ((count,),) = rows(path, "select count(*) from steps where loss = 0 or loss is null")
        assert count == 0

    def test_weights_that_became_nan_are_kept_bit_for_bit(self, path):  # S1.2
        with tracer.record(path):
            model, optimizer = make()
            for x, _ in loader(8):
                (model(x).sum() * math.nan).backward()
                optimizer.step()
        with tracer.open_trace(path) as trace:
            last = trace.state(2)["weight"]
            assert last.isnan().all()
            assert torch.equal(last.view(torch.int32), model.weight.detach().view(torch.int32))
        ((norm,),) = rows(path, "select grad_norm from steps where step = 0")
        assert math.isnan(norm)

    def test_the_norm_of_gradients_that_overflow_when_squared(self, path):
        with tracer.record(path):
            model, optimizer = make()
            for x, _ in loader(4):
                (model(x).sum() * 1e30).backward()
                expected = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in model.parameters()))
                optimizer.step()
        ((norm,),) = rows(path, "select grad_norm from steps")
        assert norm == pytest.approx(expected)

    def test_the_loss_under_a_gradient_scaler_is_the_true_one(self, path):
        losses = []
        with tracer.record(path):
            model, optimizer = make()
            scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
            for x, y in loader(8):
                optimizer.zero_grad()
                loss = ((model(x) - y) ** 2).mean()
                losses.append(loss.item())
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        assert rows(path, "select loss from steps order by step") == [(v,) for v in losses]


class TestCaptures:  # S4.3
    def test_tensors_arrays_and_numbers(self, path):
        kept = torch.ones(3)

        def each(k, model, loss):
            kept.fill_(k)
            tracer.capture("layer/rate", kept)
            tracer.capture("layer/matrix", np.full((2, 2), k, np.float64))
            tracer.capture("layer/half", torch.full((2,), float(k), dtype=torch.bfloat16))
            tracer.capture("layer/number", k * 0.5)
            tracer.capture("layer/grad", model.weight.grad)
            kept.fill_(-1)  # the loop may overwrite its own

        with tracer.record(path):
            train(epochs=1, each=each)
        with tracer.open_trace(path) as trace:
            assert set(trace.captures) == {"layer/rate", "layer/matrix", "layer/half", "layer/grad"}
            for k in range(5):
                assert trace.captures["layer/rate"][k].tolist() == [k] * 3
                assert trace.captures["layer/matrix"][k].dtype == torch.float64
                assert trace.captures["layer/half"][k].dtype == torch.bfloat16
                assert trace.captures["layer/half"][k].tolist() == [k, k]
        assert rows(path, 'select "layer/number" from steps order by step') == [(k * 0.5,) for k in range(5)]

    def test_a_feature_vector_becomes_a_column_and_other_dims_do_not(self, path):
        def each(k, model, loss):
            tracer.capture("som/win", torch.arange(3.0) + k)
            tracer.capture("som/named", torch.arange(3.0), dims=("feature",))
            tracer.capture("som/per_sample", torch.arange(4.0), dims=("sample",))

        with tracer.record(path):
            train(epochs=1, samples=8, each=each)
        got = rows(path, "select step, layer, feature, win, named from features order by step, feature")
        assert got == [(k, "som", f, f + k, f) for k in range(2) for f in range(3)]
        with tracer.open_trace(path) as trace:
            columns = [c for c, *_ in trace.sql("describe features").fetchall()]
            assert trace.captures["som/per_sample"].dims in (["sample"], ("sample",))
        assert "per_sample" not in columns

    def test_they_belong_to_their_step_alone(self, path):
        with tracer.record(path):
            train(epochs=1, each=lambda k, m, loss: tracer.capture("a/x", torch.ones(1)) if k % 2 else None)
        with tracer.open_trace(path) as trace:
            assert list(trace.captures["a/x"].steps) == [1, 3]
            with pytest.raises((MissingDataError, StepError)):
                trace.captures["a/x"][2]

    def test_of_steps_that_are_not_kept_there_are_none(self, path):
        with tracer.record(path, every=4):
            train(epochs=1, each=lambda k, m, loss: tracer.capture("a/x", torch.ones(1)))
        with tracer.open_trace(path) as trace:
            assert list(trace.captures["a/x"].steps) == [0, 3]

    def test_without_a_recorder_nothing_happens(self):
        tracer.capture("a/x", object())
        tracer.log(x=1)
        tracer.progress(total_steps=3)

    @pytest.mark.parametrize("bad", [object(), "text", [1, "a"], None])
    def test_what_is_no_tensor_ends_the_recording_and_not_the_run(self, path, bad, caplog):
        with tracer.record(path):
            train(epochs=1, each=lambda k, m, loss: tracer.capture("a/x", bad) if k == 2 else None)
        assert rows(path, "select count(*) from steps")[0][0] >= 2


class TestSessions:
    def test_a_resumed_run_finds_its_place(self, path, tmp_path):  # S1.3
        def run(steps, state=None):
            model, optimizer = make()
            if state:
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            saved = {}
            for k, (x, y) in enumerate(loader(40)):
                if k == steps:
                    break
                if k == 4:
                    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    saved = torch.load(_saved(saved, tmp_path))
                optimizer.zero_grad()
                ((model(x) - y) ** 2).mean().backward()
                optimizer.step()
            return saved

        with tracer.record(path):
            state = run(7)
        with tracer.record(path, append=True):
            run(5, state)
        facts = manifest.read(path)
        assert [(s.first_step, s.first_row, s.status) for s in facts.sessions] == [
            (0, 0, "finished"),
            (4, 256, "finished"),
        ]
        assert "state 4" in facts.sessions[1].note
        steps = rows(path, "select step, session from steps order by step")
        assert steps == [(k, int(k >= 4)) for k in range(9)]
        assert rows(path, "select count(*) from all_steps where superseded") == [(3,)]
        assert len(rows(path, "select session from sessions")) == 2

    def test_a_state_never_seen_begins_after_the_last_step_and_says_so(self, path, caplog):  # S1.3
        with tracer.record(path):
            train(epochs=1)
        with tracer.record(path, append=True):
            model, optimizer = make()
            with torch.no_grad():
                model.weight += 1
            for x, _ in loader(8):
                model(x).sum().backward()
                optimizer.step()
        assert [s.first_step for s in manifest.read(path).sessions] == [0, 5]
        assert "none of the recorded" in caplog.text
        assert rows(path, "select count(*), count(distinct step), max(step) from steps") == [(7, 7, 6)]

    def test_at_says_where(self, path):  # S1.3
        with tracer.record(path):
            train(epochs=1)
        with tracer.record(path, append=True, at=2):
            model, optimizer = make()
            with torch.no_grad():
                model.weight += 1
            for x, _ in loader(8):
                model(x).sum().backward()
                optimizer.step()
        assert rows(path, "select step, session from steps order by step") == [(0, 0), (1, 0), (2, 1), (3, 1)]

    def test_the_same_run_again_supersedes_from_its_start(self, path):  # S1.3
        for again in (False, True):
            with tracer.record(path, append=again):
                train(epochs=1)
        assert rows(path, "select step, session from steps order by step") == [(k, 1) for k in range(5)]


def _saved(state, folder):
    torch.save(state, folder / "ckpt.pt")
    return folder / "ckpt.pt"


class TestWrongUse:
    def test_an_existing_trace_is_not_overwritten(self, path):
        with tracer.record(path):
            train(epochs=1)
        before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
        with pytest.raises(UsageError, match="append"), tracer.record(path):
            train(epochs=1)
        assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
        with tracer.record(path, overwrite=True):
            train(epochs=1, samples=8)
        assert rows(path, "select count(*) from steps") == [(2,)]

    def test_a_file_or_a_folder_of_the_users_is_left_alone(self, path):
        path.write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(UsageError), tracer.record(path, overwrite=overwrite):
                train(epochs=1)
        assert path.read_text() == "mine"
        path.unlink()
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
        with pytest.raises(UsageError), tracer.record(path, overwrite=True):
            train(epochs=1)
        assert [p.name for p in path.iterdir()] == ["thesis.tex"]

    def test_a_run_that_never_trains_leaves_nothing(self, path):
        with pytest.raises(ProgramError, match="nothing was trained"), tracer.record(path):
            pass
        assert not path.exists()
        model = torch.nn.Linear(3, 1)
        with pytest.raises(ProgramError), tracer.record(path):
            list(map(model, [x for x, _ in loader()]))
        assert not path.exists()
        assert active.listener() is None

    @pytest.mark.parametrize(
        "options", [{"detail": "everything"}, {"every": 0}, {"every": -3}, {"keyframe_every": 0}], ids=str
    )
    def test_options_that_make_no_sense(self, path, options):
        with pytest.raises(UsageError):
            tracer.record(path, **options)
        assert not path.exists()

    def test_one_recording_at_a_time(self, path, tmp_path):
        with tracer.record(path):
            train(epochs=1)
            with pytest.raises(UsageError, match="one at a time"), tracer.record(tmp_path / "other"):
                pass
            train(epochs=1)
        assert not (tmp_path / "other").exists()
        assert rows(path, "select count(*) from steps") == [(10,)]

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises((WriteError, UsageError)), tracer.record(tmp_path / "file" / "t"):
            train(epochs=1)
        assert active.listener() is None


class TestEndings:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (RuntimeError("boom"), "failed"),
            (SystemExit(0), "finished"),
            (SystemExit(3), "failed"),
            (SystemExit(None), "finished"),
            (KeyboardInterrupt(), "terminated"),
        ],
        ids=repr,
    )
    def test_whatever_ends_it_the_trace_is_whole(self, path, error, said):
        def each(k, model, loss):
            if k == 3:
                raise error

        with pytest.raises(type(error)), tracer.record(path):
            train(epochs=1, each=each)
        assert status(path) == [said]
        with tracer.open_trace(path) as trace:
            # Step 3 had stepped its optimizer, and was cut short: it is no row, but it is told of.
            assert trace.steps == 3
            assert trace.has_state(3)
            assert torch.isfinite(trace.state(3)["weight"]).all()
        kinds = [k for (k,) in rows(path, "select kind from events")]
        assert kinds.count("unfinished") == 1
        assert active.listener() is None

    def test_a_break_ends_the_last_step(self, path):
        with tracer.record(path):
            model, optimizer = make()
            for i, (x, _) in enumerate(loader()):
                model(x).sum().backward()
                optimizer.step()
                if i == 2:
                    break
        assert rows(path, "select count(*) from steps") == [(3,)]

    def test_sigterm_ends_the_session_first(self, path, monkeypatch):
        sent = []
        monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
        with tracer.record(path):
            train(epochs=1)
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
        assert sent == [signal.SIGTERM]
        assert status(path) == ["terminated"]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_a_handler_of_the_programs_own_stays(self, path):
        mine = lambda number, frame: None  # noqa: E731
        before = signal.signal(signal.SIGTERM, mine)
        try:
            with tracer.record(path):
                train(epochs=1)
            assert signal.getsignal(signal.SIGTERM) is mine
        finally:
            signal.signal(signal.SIGTERM, before)


TOUCHED = [
    (torch.Tensor, "backward"),
    (torch.autograd, "backward"),
    (torch.amp.GradScaler, "scale"),
    (dataloader._BaseDataLoaderIter, "__next__"),
    (torch.nn.modules.module, "_has_any_global_hook"),
]


def hooks_now():
    module = torch.nn.modules.module
    return [getattr(owner, name) for owner, name in TOUCHED], [
        len(table)
        for table in (
            optimizer_module._global_optimizer_pre_hooks,
            optimizer_module._global_optimizer_post_hooks,
            module._global_forward_pre_hooks,
            module._global_forward_hooks,
        )
    ]


class TestNothingStays:
    @pytest.mark.parametrize("error", [None, RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
    def test_hooks_are_off_afterwards(self, path, error):
        def each(k, model, loss):
            assert hooks_now() != before
            if error is not None and k == 2:
                raise error

        before = hooks_now()
        expected = pytest.raises(type(error)) if error is not None else contextlib.nullcontext()
        with expected, tracer.record(path):
            train(epochs=1, each=each)
        assert hooks_now() == before

    def test_and_where_no_loader_drove_the_loop(self, path):
        before = hooks_now()
        with tracer.record(path):
            train_without_loader(3)
        assert hooks_now() == before

    def test_where_the_start_was_refused(self, path):
        before = hooks_now()
        path.write_text("mine")
        with contextlib.suppress(UsageError), tracer.record(path):
            pass
        assert hooks_now() == before
        assert active.listener() is None
        assert not frames.block()

    def test_one_that_is_refused_inside_of_another(self, path, tmp_path):
        def refused():
            with pytest.raises(UsageError), tracer.record(tmp_path / "second"):
                pass

        with tracer.record(path):
            before = frames.block()
            refused()
            assert frames.block() == before
            train(epochs=1)
        assert before

    @pytest.mark.parametrize("run", [train, train_without_loader])
    @pytest.mark.parametrize("call", range(1, 5))
    def test_where_the_recorder_failed(self, path, run, call, monkeypatch, caplog):
        calls = []
        original = StateReader.fingerprint

        def failing(self):
            calls.append(1)
            if len(calls) == call:
                raise ZeroDivisionError("injected")
            return original(self)

        monkeypatch.setattr(StateReader, "fingerprint", failing)
        before = hooks_now()
        with tracer.record(path):
            run()
        assert "injected" in caplog.text
        assert hooks_now() == before

    def test_where_ctrl_c_comes_while_it_ends(self, path, monkeypatch):
        def interrupted(self, *, failed):
            raise KeyboardInterrupt

        monkeypatch.setattr(StepRecorder, "close", interrupted)
        before = hooks_now()
        recorder = tracer.record(path)
        with pytest.raises(KeyboardInterrupt), recorder:
            train_without_loader(3)
        assert hooks_now() == before
        assert active.listener() is None
        recorder._journal.close("failed")
        recorder._errands.close()

    @pytest.mark.parametrize("run", [train, train_without_loader])
    def test_models_and_optimizers_are_freed(self, path, run, monkeypatch):
        refs = []
        original = torch.optim.SGD.__init__

        def init(self, params, **options):
            params = list(params)
            original(self, params, **options)
            refs.extend([weakref.ref(self), *map(weakref.ref, params)])

        monkeypatch.setattr(torch.optim.SGD, "__init__", init)
        with tracer.record(path):
            model = run()
            refs.append(weakref.ref(model))
            del model
        gc.collect()
        assert len(refs) == 4
        assert [r() for r in refs] == [None] * 4

    def test_recording_changes_neither_weights_nor_randomness(self, path):
        plain = train(), torch.rand(1)
        with tracer.record(path, detail="full", keyframe_every=1):
            recorded = train(), torch.rand(1)
        assert torch.equal(plain[0].weight, recorded[0].weight)
        assert torch.equal(plain[1], recorded[1])

    def test_threads_files_and_descriptors(self, path):
        def open_files():
            return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}

        before = open_files()
        with tracer.record(path):
            train(epochs=1)
        gc.collect()
        assert not {f for f in open_files() - before if str(path) in f}


def _is_open(fd):
    return os.path.exists(f"/proc/self/fd/{fd}")


class TestFailures:  # S0.4
    @pytest.mark.parametrize("where", ["capture", "fingerprint", "walk", "encode"])
    def test_a_failure_of_the_recorder_does_not_reach_the_program(self, path, where, monkeypatch, caplog):
        calls = []

        def failing(*args, **kwargs):
            calls.append(1)
            if len(calls) > 2:
                raise ZeroDivisionError("injected")
            return original(*args, **kwargs)

        owner = {"capture": keyframe, "fingerprint": StateReader, "walk": walk, "encode": BatchEncoder}[where]
        name = where
        original = getattr(owner, name)
        plain = train()
        monkeypatch.setattr(owner, name, failing)
        with tracer.record(path, keyframe_every=1):
            recorded = train()
        assert len(calls) > 2
        assert torch.equal(plain.weight, recorded.weight)
        assert "recording stopped, training goes on" in caplog.text
        assert caplog.text.count("injected") == 1
        assert "injected" in manifest.read(path).sessions[0].note
        assert rows(path, "select count(*) from steps")[0][0] < 10

    def test_a_write_that_fails_is_counted_and_it_goes_on_after(self, path, monkeypatch, caplog):
        clock = [1000.0]
        broken = [False]
        original = TailWriter._write

        def write(self, buffers, expected):
            if broken[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(self, buffers, expected)

        def each(k, model, loss):
            broken[0] = 3 <= k < 6
            clock[0] += 2

        monkeypatch.setattr(TailWriter, "_write", write)
        monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
        plain = train()
        with tracer.record(path):
            recorded = train(each=each)
        assert torch.equal(plain.weight, recorded.weight)
        assert caplog.text.count("No space left on device") == 1
        assert "works again" in caplog.text
        assert "3-5" in caplog.text
        assert [k for (k,) in rows(path, "select step from steps order by 1")] == [0, 1, 2, 6, 7, 8, 9]
        counts = rows(path, "select offered, kept, written, dropped from epochs order by epoch")
        assert [o for o, *_ in counts] == [5, 5]
        assert all(kept == written + dropped for _, kept, written, dropped in counts)
        assert sum(dropped for *_, dropped in counts) == 3
        with tracer.open_trace(path) as trace:
            assert torch.equal(trace.state(10)["weight"], plain.weight.detach())
            # A state that can be replayed is taken as soon as it is possible again.
            assert any(6 <= k <= 7 for k in trace.keyframes)
            with pytest.raises((MissingDataError, StepError)):
                trace.record(4)

    def test_a_disk_that_is_full_from_the_start(self, path, monkeypatch):
        plain = train()
        opened = []
        before = hooks_now()

        def write(self, buffers, expected):
            opened.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(TailWriter, "_write", write)
        with contextlib.suppress(ProgramError), tracer.record(path):
            recorded = train()
        assert opened
        assert torch.equal(plain.weight, recorded.weight)
        assert hooks_now() == before

    def test_what_the_program_raises_passes_through(self, path):
        class Broken(torch.utils.data.Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, i):
                if i == 2:
                    raise LookupError("theirs")
                return torch.ones(3)

        def run():
            model, optimizer = make()
            for x in torch.utils.data.DataLoader(Broken()):
                model(x).sum().backward()
                optimizer.step()

        with pytest.raises(LookupError, match="theirs"), tracer.record(path):
            run()
        assert status(path) == ["failed"]
        assert rows(path, "select count(*) from steps") == [(2,)]


def test_what_the_trace_says_of_the_run(path):
    started = time.time()
    with tracer.record(path) as recorder:
        train(epochs=1)
        assert recorder.step == 5
    raw = json.loads((path / "trace.json").read_text())
    assert raw["format"] == 1
    assert started <= raw["created"] <= raw["sessions"][0]["ended"] <= time.time()
    assert raw["sessions"][0]["pid"] == os.getpid()
    assert raw["environment"]["torch"] == torch.__version__
    assert raw["program"]["kind"] == "block"
    assert len(data()[0]) == 20


def test_an_optimizer_that_no_variable_leads_to(tmp_path, unsealed):
    model, holder = torch.nn.Linear(3, 2), threading.local()
    holder.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.record(tmp_path / "t", detail="replay", weights=True):
        for _ in range(3):
            holder.optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            holder.optimizer.step()
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.steps == 3
        assert trace.state(3)["weight"].equal(model.weight)
