"""Every kind of training loop: recorded as a user would, verified, and sought about in, bit for bit (C1, C3, B1, B2).

The programs are in `tests/programs/`, the replaying processes in `drive.py`. Two programs are at work at a time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
PROGRAMS = HOUSE / "tests" / "programs"
DRIVE = Path(__file__).with_name("drive.py")
SCRIBE = Path(__file__).with_name("scribe.py")
# One thread for torch: two programs are at work at a time.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
# One hash seed, which the replaying processes do not have: all engines of a driver come from one nursery.
RECORDING = {**ENVIRONMENT, "PYTHONHASHSEED": "1729"}
RECORD = ["record", "--out", "t.trace", "--keyframe-every", "5"]

# How many steps each program has: a step is one batch of the DataLoader that drives the loop, else one step of the
# first optimizer. Batches of validation are none, nor are those that were only peeked at or skipped.
STEPS = {
    "add_param_group": 24,
    "amp_bfloat16": 18,
    "augment_workers": 18,
    "bfloat16_params": 15,
    "compiled_model": 15,
    "compiled_step": 14,
    "contrastive_queue": 18,
    "cosine_warmup": 24,
    "crash": 9,
    "dqn_replay_buffer": 25,
    "early_stop": 24,
    "ema": 20,
    "enumerate_accum": 28,
    "eval_without_no_grad": 16,
    "exotic_batches": 12,
    "flat_grads": 18,
    "float64": 20,
    "framework_drives": 36,
    "frozen_params": 16,
    "functional_gradients": 16,
    "gan": 18,
    "gan_no_loader": 24,
    "global_generator": 18,
    "grad_clip_noise": 18,
    "hidden_state_hook": 20,
    "infinite_cycle": 22,
    "iterable_dataset": 21,
    "kfold": 24,
    "lazy_modules": 12,
    "lbfgs_closure": 12,
    "list_of_losses": 24,
    "loader_augment": 20,
    "loader_basic": 24,
    "loader_persistent": 18,
    "loader_workers": 18,
    "local_generator_fn": 18,
    "lookahead": 18,
    "loop_at_module_level": 24,
    "loop_in_method": 21,
    "module_replaced": 20,
    "multi_loss": 18,
    "namedtuple_batches": 14,
    "nan_onset": 15,
    "nested_batches": 16,
    "no_loader_for_eval": 20,
    "no_loader_prefetch": 16,
    "no_loader_while": 24,
    "numpy_permutation": 25,
    "numpy_shuffle_inplace": 25,
    "object_batches": 18,
    "odd_layouts": 24,
    "optimizer_switch": 25,
    "own_files": 24,
    "params_in_a_list": 24,
    "peek_first_batch": 21,
    "plateau": 24,
    "ppo_like": 27,
    "ragged_last_batch": 15,
    "reinforce": 16,
    "resized_buffers": 16,
    "resume": 16,
    "rnn_carried_hidden": 24,
    "schedulers": 90,
    "skip_batches": 10,
    "sparse_embedding": 18,
    "state_in_closure": 20,
    "sys_exit": 12,
    "tied_weights": 18,
    "tqdm_loop": 18,
    "two_loaders": 20,
    "two_models": 25,
    "unrecorded": 16,
    "unseeded": 18,
    "unseeded_no_loader": 16,
    "views_of_state": 24,
    "vocabulary_from_set": 14,
    "zip_and_count": 21,
}
EXIT = {"crash": 1, "sys_exit": 3}
# Where fewer steps than all have a loss: gradients that no backward() made.
NO_LOSS = {"functional_gradients": 16}
NOT_EXACT = {"unrecorded"}
# What a program itself leaves in its folder when it is recorded.
WRITES = {"own_files": {"best.pt", "ckpt.pt", "config.json", "kept", "log.csv", "log.txt"}}
# Recorded in a process that was started for them alone: what they show is how a process begins, ends, or starts others.
BY_HAND = {"crash", "loader_persistent", "loader_workers", "sys_exit", "unseeded"}
# There Python draws the hash seed, which a recording has to keep.
OWN_HASH_SEED = {"vocabulary_from_set"}
EXACT = sorted(STEPS.keys() - NOT_EXACT)
# Those that are also recorded and replayed as a function, in this process.
FUNCTIONS = ["loader_basic", "no_loader_prefetch", "gan", "lbfgs_closure", "loop_in_method", "rnn_carried_hidden"]


@dataclass(frozen=True)
class Outcome:
    """What recording and replaying one program came to."""

    home: Path
    recorded: subprocess.CompletedProcess[str]

    @property
    def trace(self) -> Path:
        return self.home / "t.trace"

    @property
    def report(self) -> dict:
        """What drive.py saw; fails with its complaint where it broke off."""
        report = json.loads((self.home / "report.json").read_text())
        assert "error" not in report, report["error"]
        return report


class Drivers:
    """For each thread that asks, a process of scribe.py, and one of drive.py, which stands in an empty folder."""

    def __init__(self, home: Path, prints: Path) -> None:
        self.home = home
        self._prints = prints
        self._mine = threading.local()
        self._all: list[subprocess.Popen[str]] = []

    def _ask(self, script: Path, job: list[object]) -> str:
        """Give `script`'s process of this thread a job, and return its answer."""
        name = script.stem
        if not hasattr(self._mine, name):
            process = subprocess.Popen(
                [sys.executable, script],
                cwd=self.home,
                env=ENVIRONMENT if script is DRIVE else RECORDING,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            setattr(self._mine, name, process)
            self._all.append(process)
        process = getattr(self._mine, name)
        print(json.dumps([*map(str, job[:2]), job[2]]), file=process.stdin, flush=True)
        return process.stdout.readline().strip()

    def record(self, home: Path, *args: object) -> subprocess.CompletedProcess[str]:
        """As `record`, in a process forked from one that has loaded torch."""
        output = self._prints / home.name
        arguments = [*RECORD, *map(str, args)]
        code = int(self._ask(SCRIBE, [home, output, arguments]))
        said = (output.with_name(f"{home.name}.{stream}").read_text() for stream in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, code, *said)

    def drive(self, home: Path, seed: int = 0) -> None:
        """Verify and seek about in home/t.trace; the answer is home/report.json."""
        assert self._ask(DRIVE, [home / "t.trace", home / "report.json", seed]) == "done"

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.communicate()


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    """The processes that record and replay."""
    made = Drivers(tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("prints"))
    yield made
    made.close()


def record(home: Path, *args: object, environment: dict[str, str] = RECORDING) -> subprocess.CompletedProcess[str]:
    """Record through the command line into home/t.trace, with keyframes close to each other."""
    command = [sys.executable, "-m", "apps.cli", *RECORD, *map(str, args)]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=240)


def record_and_drive(program: str, home: Path, drivers: Drivers) -> Outcome:
    """Do both for one program."""
    script = PROGRAMS / f"{program}.py"
    if program in OWN_HASH_SEED:
        recorded = record(home, script, environment=ENVIRONMENT)
    else:
        recorded = (record if program in BY_HAND else drivers.record)(home, script)
    drivers.drive(home, seed=STEPS[program])
    return Outcome(home, recorded)


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory, drivers):
    """The outcomes of all programs that the chosen tests ask for, two at work at a time, each as a future."""
    wanted = [i.callspec.params["program"] for i in request.session.items if "outcome" in i.fixturenames]
    homes = {program: tmp_path_factory.mktemp(program) for program in dict.fromkeys(wanted)}
    with ThreadPoolExecutor(2) as pool:
        yield {program: pool.submit(record_and_drive, program, home, drivers) for program, home in homes.items()}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def outcome(outcomes: dict[str, Future], program: str) -> Outcome:
    """The outcome of `program`."""
    return outcomes[program].result()


def test_the_table_names_every_program():
    assert {path.stem for path in PROGRAMS.glob("*.py")} - {"weights_digest"} == STEPS.keys()


@pytest.mark.parametrize("program", EXACT)
class TestExactPrograms:
    def test_recording_lets_it_end_as_it_does(self, program, outcome):
        assert outcome.recorded.returncode == EXIT.get(program, 0), outcome.recorded.stderr[-3000:]
        assert "Warning" not in outcome.recorded.stderr

    def test_verify_proves_every_step(self, program, outcome):
        facts = outcome.report["verify"]["facts"]
        assert facts["first_divergence"] is None
        assert facts["steps"] == STEPS[program]
        assert (facts["verified"], facts["diverged"], facts["unverifiable"]) == (facts["steps"], 0, 0)
        assert outcome.report["verify"]["exit"] == 0

    def test_seeking_in_random_order_is_exact(self, program, outcome):
        seeks = outcome.report["seeks"]
        assert [seek for seek in seeks if seek["kind"] != "verified"] == []
        assert [seek for seek in seeks if seek["step"] != seek["at"]] == []
        assert [seek for seek in seeks if seek["equal"] is not True] == []

    def test_the_loss_is_found(self, program, outcome):
        assert outcome.report["losses"] == NO_LOSS.get(program, 0)

    def test_replaying_leaves_nothing_behind(self, program, outcome, drivers):
        own = WRITES.get(program, set())
        assert {path.name for path in outcome.home.iterdir()} == {"t.trace", "report.json", *own}
        assert not list(drivers.home.iterdir())


@pytest.mark.parametrize("program", sorted(NOT_EXACT))
class TestProgramsThatCannotBeExact:
    """Where exactness can't be had it is said, with the cause: never a silent wrong answer (B2)."""

    def test_verify_says_so(self, program, outcome):
        assert outcome.recorded.returncode == 0, outcome.recorded.stderr[-3000:]
        verify = outcome.report["verify"]
        assert verify["exit"] == 1
        assert verify["facts"]["verified"] == 0
        assert verify["facts"]["diverged"] >= 1
        first = verify["facts"]["first_divergence"]
        assert first["step"] == 0
        assert first["tensor"].endswith(("weight", "bias"))
        assert first["max_ulp"] > 0
        assert first["cause"]

    def test_no_seek_is_called_verified(self, program, outcome):
        assert {seek["kind"] for seek in outcome.report["seeks"]} <= {"diverged", "unverifiable"}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, drivers):
    """A run, and a second one that resumes from the checkpoint which the first saved, in one trace."""
    home = tmp_path_factory.mktemp("resumed")
    first = record(home, PROGRAMS / "resume.py", "--save", "ckpt.pt")
    kept = (home / "ckpt.pt").read_bytes()
    second = record(home, "--append", PROGRAMS / "resume.py", "--resume", "ckpt.pt")
    drivers.drive(home)
    return first, second, kept, Outcome(home, second)


class TestResume:
    """The user's own checkpoint file starts a second session of the same trace (S1.3)."""

    def test_it_goes_on_where_the_first_session_ended(self, resumed):
        first, second, _, outcome = resumed
        assert first.returncode == 0, first.stderr[-3000:]
        assert second.returncode == 0, second.stderr[-3000:]
        facts = outcome.report["verify"]["facts"]
        assert facts["steps"] == facts["verified"] == 32
        assert outcome.report["verify"]["exit"] == 0
        sessions = json.loads((outcome.trace / "trace.json").read_text())["sessions"]
        assert [(s["first_step"], s["status"]) for s in sessions] == [(0, "finished"), (16, "finished")]

    def test_seeking_crosses_the_sessions(self, resumed):
        outcome = resumed[3]
        assert {seek["kind"] for seek in outcome.report["seeks"]} == {"verified"}
        assert {seek["equal"] for seek in outcome.report["seeks"]} == {True}

    def test_replaying_leaves_the_users_checkpoint_alone(self, resumed):
        _, _, kept, outcome = resumed
        assert outcome.report["verify"]["exit"] == 0
        assert (outcome.home / "ckpt.pt").read_bytes() == kept
        assert {path.name for path in outcome.home.iterdir()} == {"t.trace", "report.json", "ckpt.pt"}


@pytest.fixture
def train(request, monkeypatch):
    """The function `train` of a program, imported as a module of the user's would be."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    spec = importlib.util.spec_from_file_location(request.param, PROGRAMS / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, request.param, module)
    spec.loader.exec_module(module)
    return module.train


@pytest.mark.parametrize("train", FUNCTIONS, indirect=True)
class TestFunctions:
    def test_a_function_is_recorded_and_replayed_in_this_process(self, train, tmp_path, capfd, request):
        import tracer
        from replay import Session

        steps = STEPS[train.__module__]
        with tracer.record(tmp_path / "t.trace", keyframe_every=5):
            train()
        printed = capfd.readouterr().out
        assert printed.splitlines()[-1].startswith("final ")
        order = random.Random(1).sample(range(steps), 5)
        with Session(tmp_path / "t.trace", program=train) as session:
            for k in [*order, steps - 1, 0, 0]:
                session.seek(k)
                verdict = session.step()
                assert (verdict.kind, verdict.step) == ("verified", k), verdict
            session.back()
            assert session.step().kind == "verified"

    def test_recording_does_not_change_it(self, train, tmp_path, capfd, request):
        import tracer

        train()
        plain = capfd.readouterr().out
        with tracer.record(tmp_path / "t.trace"):
            train()
        assert capfd.readouterr().out == plain
