"""Every audit has a test that has the fault and one that nearly has it (S1.4, S4.9): precision matters."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import audits

T = 200
STEPS = np.arange(T)
RNG = np.random.default_rng(0)


def one(findings: list[audits.Finding]) -> audits.Finding:
    assert len(findings) == 1
    found = findings[0]
    assert found.evidence
    assert found.query.startswith("select")
    assert found.advice
    return found


def falling(start: float = 2.0, end: float = 0.1) -> np.ndarray:
    return np.geomspace(start, end, T)


# --- recorded numbers -------------------------------------------------------------------------------------------------


def test_all_zero():
    found = one(audits.all_zero("train_loss", STEPS + 5, np.zeros(T)))
    assert (found.kind, found.step) == ("all_zero", 5)
    assert "'train_loss'" in found.query


@pytest.mark.parametrize("name", ["loss", "valLoss", "top1", "epoch/RMSE"])
def test_all_zero_knows_a_measured_metric_by_its_name(name):
    assert audits.all_zero(name, [0, 1, 2], [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("loss", [0.0, 0.0, 1e-30]),  # nearly zero is not zero
        ("loss", [0.0, 0.0]),  # too few to say
        ("loss", [0.0, 0.0, np.nan]),
        ("weight_decay", [0.0] * 50),  # a setting
        ("skipped_batches", [0.0] * 50),  # a counter
        ("bcl/coupled", [0.0] * 50),
    ],
)
def test_nearly_all_zero(name, values):
    assert audits.all_zero(name, np.arange(len(values)), values) == []


def test_constant():
    found = one(audits.constant("val_loss", [100, 200, 300], [9.539] * 3))
    assert (found.kind, found.step) == ("constant", 100)
    assert "9.539" in found.evidence


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("val_loss", [9.539, 9.539, np.nextafter(9.539, 10)]),
        ("val_loss", [9.539, 9.539]),
        ("val_accuracy", [0.5] * 9),
        ("val_accuracy", [1.0] * 50),  # solved, not stuck
        ("lr", [0.001] * 50),
        ("loss", [0.0] * 50),  # all_zero's
        ("loss", [np.nan] * 50),  # nonfinite's
    ],
)
def test_nearly_constant(name, values):
    assert audits.constant(name, np.arange(len(values)), values) == []


def test_zero_metric_beside_a_falling_loss():
    found = one(audits.zero_beside_falling_loss("train_loss", STEPS, np.zeros(T), falling()))
    assert found.kind == "zero_beside_falling_loss"
    nearly = np.zeros(T)
    nearly[-1] = 0.1
    assert audits.zero_beside_falling_loss("train_loss", STEPS, nearly, falling()) == []
    assert audits.zero_beside_falling_loss("train_acc", STEPS, np.zeros(T), falling(2.0, 1.1)) == []


def test_nonfinite_onset():
    values = falling()
    values[120:] = np.nan
    found = one(audits.nonfinite("loss", STEPS, values))
    assert (found.kind, found.step) == ("nan", 120)
    assert "80 of 200" in found.evidence
    values[50] = -np.inf
    assert one(audits.nonfinite("loss", STEPS, values)).step == 50


def test_nearly_nonfinite():
    assert audits.nonfinite("loss", STEPS, np.full(T, np.finfo(np.float64).max)) == []
    scaled = falling()
    scaled[[0, 1, 2, 90]] = np.inf  # a GradScaler looking for its scale
    assert audits.nonfinite("grad_norm", STEPS, scaled) == []
    assert audits.nonfinite("loss", STEPS, scaled)
    scaled[-1] = np.nan
    assert one(audits.nonfinite("grad_norm", STEPS, scaled)).step == 0


def states(bad_step: int | None):
    mask = np.triu(np.full((4, 4), -np.inf), 1)
    for step in range(10):
        weight = RNG.normal(size=(4, 4))
        head = RNG.normal(size=3)
        if bad_step is not None and step >= bad_step:
            weight[1, 2] = np.nan
            head[:] = np.nan
        yield step, {"attn.mask": mask, "attn.q.weight": weight, "head.bias": head, "count": np.array(3)}


def test_first_tensor_and_layer_with_nan():
    found = one(audits.nonfinite_tensors(states(6)))
    assert (found.kind, found.step) == ("nan_tensor", 6)
    assert "attn.q.weight" in found.evidence
    assert "layer attn.q)" in found.evidence
    assert "1 more" in found.evidence


def test_a_mask_of_infinities_is_no_nan():
    assert audits.nonfinite_tensors(states(None)) == []


def test_gaps():
    found = one(audits.gaps([0, 1, 2, 5, 6]))
    assert (found.kind, found.step) == ("gap", 3)
    assert "2 of 7" in found.evidence
    assert one(audits.gaps([0, 9, 29], expected=[0, 9, 19, 29])).step == 19


def test_nearly_gaps():
    assert audits.gaps([5, 3, 4]) == []
    assert audits.gaps([0, 9, 19, 29, 39, 49], expected=[0, 9, 19, 29, 39, 49]) == []  # S0.1: every=10 of 50
    assert audits.gaps([]) == []


def test_duplicates():
    found = one(audits.duplicates([0, 1, 2, 2, 3, 3]))
    assert (found.kind, found.step) == ("duplicate", 2)
    assert audits.duplicates([3, 1, 2]) == []


def test_clock_going_back():
    times = 1.7e9 + 0.5 * STEPS
    times[60:] -= 3600
    found = one(audits.clock_backwards(STEPS, times))
    assert (found.kind, found.step) == ("clock", 60)


def test_clock_nearly_going_back():
    times = 1.7e9 + 0.001 * STEPS
    times[60:] -= 0.2  # the clock is set right by a fifth of a second
    assert audits.clock_backwards(STEPS, times) == []
    back = 1.7e9 + 0.5 * STEPS
    back[100:] -= 3600
    sessions = np.repeat([0, 1], 100)  # a resume on another machine
    assert audits.clock_backwards(STEPS, back, sessions) == []


def epochs_of(last_batch: int, last_value: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    epoch = np.repeat(np.arange(4), 15)
    sizes = np.tile([128] * 14 + [last_batch], 4)
    values = np.tile([1.0] * 14 + [last_value], 4)
    return epoch, values, sizes


def test_means_that_disagree():
    found = one(audits.means_disagree("loss", *epochs_of(5, 4.0)))
    assert found.kind == "means_disagree"
    assert '"loss_batch_mean"' in found.query


@pytest.mark.parametrize(("last_batch", "last_value"), [(5, 1.5), (128, 4.0), (5, np.nan)])
def test_means_that_nearly_disagree(last_batch, last_value):
    assert audits.means_disagree("loss", *epochs_of(last_batch, last_value)) == []


def test_a_steep_first_epoch_alone_is_no_disagreement():
    epoch, values, sizes = epochs_of(5, 1.0)
    values[14] = 9.0
    assert audits.means_disagree("loss", epoch, values, sizes) == []


def test_series_that_should_agree():
    a = falling()
    b = a.copy()
    b[80:] *= 1.05
    found = one(audits.series_disagree(("loss", "train_loss"), STEPS, a, b))
    assert found.step == 80
    b = a * (1 + 1e-5)
    b[3] = 7
    a[10] = b[10] = np.nan
    assert audits.series_disagree(("loss", "train_loss"), STEPS, a, b) == []


# --- what learns ------------------------------------------------------------------------------------------------------


def test_dead_features():
    rates = RNG.uniform(0.02, 0.3, size=(T, 6))
    rates[150:, 4] = 0.001
    rates[170:, 1] = 0.0
    found = one(audits.dead_features("bcl", STEPS, rates))
    assert (found.kind, found.step) == ("dead_features", 150)
    assert "2 of 6" in found.evidence
    assert "feature 4" in found.evidence


def test_nearly_dead_features():
    rates = RNG.uniform(0.02, 0.3, size=(T, 3))
    rates[100:180, 0] = 0.001  # it came back
    rates[-5:, 1] = 0.001  # too short to say
    rates[:, 2] = 0.0101
    assert audits.dead_features("bcl", STEPS, rates) == []


def test_exploding_gradient():
    norms = RNG.uniform(0.5, 2, T)
    norms[150:] *= 1000
    found = one(audits.exploding_gradient(STEPS, norms))
    assert (found.kind, found.step) == ("exploding_gradient", 150)
    norms[152:] = np.inf
    assert one(audits.exploding_gradient(STEPS, norms)).step == 150


@pytest.mark.parametrize("case", ["spike", "growth", "start", "nan"])
def test_nearly_exploding_gradient(case):
    norms = RNG.uniform(0.5, 2, T)
    if case == "spike":
        norms[[100, 101, 140]] = 1e5
    elif case == "growth":
        norms *= np.geomspace(1, 1000, T)
    elif case == "start":
        norms[:10] = 1e-6
        norms[:15] *= 1e-3
    else:
        norms[100:] = np.nan
    assert audits.exploding_gradient(STEPS, norms) == []


def test_vanishing_gradient():
    norms = np.geomspace(1, 1e-7, T)
    found = one(audits.vanishing_gradient(STEPS, norms, np.full(T, 2.3)))
    assert found.kind == "vanishing_gradient"
    assert 100 < found.step < T


def test_nearly_vanishing_gradient():
    norms = np.geomspace(1, 1e-7, T)
    assert audits.vanishing_gradient(STEPS, norms, falling(2.0, 1e-6)) == []  # it has converged
    assert audits.vanishing_gradient(STEPS, np.geomspace(1, 1e-3, T), np.full(T, 2.3)) == []
    assert audits.vanishing_gradient(STEPS, np.zeros(T), np.full(T, 2.3)) == []  # frozen, not vanishing


def test_vanishing_layer():
    norms = RNG.uniform(0.5, 2, size=(T, 3)) * [1e-8, 1.0, 0.1]
    found = one(audits.vanishing_layers(["first", "middle", "last"], norms))
    assert "first" in found.evidence
    for scale in ([1e-4, 1.0, 0.1], [0.0, 1.0, 0.1]):
        assert audits.vanishing_layers(["a", "b", "c"], norms / [1e-8, 1, 0.1] * scale) == []


@pytest.mark.parametrize(("ratio", "word"), [(1e-6, "Raise"), (0.2, "Lower")])
def test_update_ratio_out_of_range(ratio, word):
    found = one(audits.update_ratio("fc.weight", STEPS, np.full(T, ratio), np.ones(T)))
    assert found.kind == "update_ratio"
    assert found.advice.startswith(word)


@pytest.mark.parametrize(
    "moved",
    [
        np.full(T, 1e-3),
        np.geomspace(5e-2, 1e-7, T),  # Adam's first steps, then a decayed schedule
        np.full(T, 5e-5),  # fine-tuning
        np.zeros(T),  # frozen
    ],
)
def test_update_ratio_nearly_out_of_range(moved):
    assert audits.update_ratio("fc.weight", STEPS, moved, np.ones(T)) == []


def test_a_weight_that_began_at_zero_has_no_ratio_there():
    weight = np.ones(T)
    weight[0] = 0
    assert audits.update_ratio("fc.weight", STEPS, np.full(T, 1e-3), weight) == []
    assert audits.update_ratio("fc.weight", STEPS, np.full(T, 1e-3), np.zeros(T)) == []


def test_features_converging():
    means = np.linspace(0, 1, T)
    found = one(audits.features_converging("encoder.weight", STEPS, means))
    assert found.kind == "features_converging"
    assert found.step == np.flatnonzero(means > 0.9)[0]


@pytest.mark.parametrize(
    "means",
    [
        np.linspace(0, 0.89, T),
        np.full(T, 0.99),  # it began alike
        np.concatenate([np.linspace(0, 1, T - 1), [0.85]]),  # it does not last
        np.concatenate([np.linspace(0, 1, T - 1), [np.nan]]),
    ],
)
def test_features_nearly_converging(means):
    assert audits.features_converging("encoder.weight", STEPS, means) == []


def test_forces_fighting():
    cosines = RNG.normal(-0.5, 0.2, size=(T, 64))
    cosines[:20] = 0.3
    found = one(audits.forces_fighting("bcl", STEPS, cosines))
    assert (found.kind, found.step) == ("forces_fighting", 20)


@pytest.mark.parametrize("mean", [0.5, 0.0, -0.1])
def test_forces_nearly_fighting(mean):
    assert audits.forces_fighting("bcl", STEPS, RNG.normal(mean, 0.04, size=(T, 64))) == []


def test_forces_without_direction_do_not_fight():
    assert audits.forces_fighting("bcl", STEPS, np.full((T, 64), np.nan)) == []


def test_zero_learning_rate():
    lr = np.linspace(1e-3, 1e-5, T)
    lr[150:] = 0
    found = one(audits.zero_learning_rate(STEPS, lr))
    assert (found.kind, found.step) == ("zero_learning_rate", 150)
    lr = np.linspace(0, 1e-3, T)  # a warm-up's first step
    lr[-1] = 0  # a decay's last
    assert audits.zero_learning_rate(STEPS, lr) == []
    lr[100:108] = 0
    assert audits.zero_learning_rate(STEPS, lr) == []
    assert audits.zero_learning_rate([], []) == []


def test_frozen_parameter():
    hashes = RNG.integers(0, 2**63, size=(T, 3), dtype=np.uint64)
    hashes[:, 1] = 7
    names = ["a", "b", "c"]
    found = one(audits.frozen_parameters(names, hashes, [True, True, True]))
    assert (found.kind, found.step) == ("frozen_parameter", 0)
    assert " b." in found.evidence
    assert audits.frozen_parameters(names, hashes, [True, False, True]) == []  # frozen on purpose
    assert audits.frozen_parameters(names, hashes[:10], [True, True, True]) == []
    hashes[-1, 1] = 8  # it moved once
    assert audits.frozen_parameters(names, hashes, [True, True, True]) == []


def test_nothing_moves():
    assert one(audits.nothing_moves([4, 5, 6], ["ab"] * 3)).kind == "nothing_moves"
    assert audits.nothing_moves([4, 5, 6], ["ab", "ab", "cd"]) == []
    assert audits.nothing_moves([4, 5], ["ab", "ab"]) == []


# --- data and modes ---------------------------------------------------------------------------------------------------


def shuffled_epochs(epochs: int = 4, per_epoch: int = 8, size: int = 16) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(5)
    batches = [b for _ in range(epochs) for b in np.split(rng.permutation(per_epoch * size), per_epoch)]
    return np.repeat(np.arange(epochs), per_epoch), batches


def test_repeated_batch():
    _, batches = shuffled_epochs()
    batches[10] = batches[11] = batches[9]
    found = one(audits.repeated_batches(np.arange(32), batches))
    assert (found.kind, found.step) == ("repeated_batch", 9)
    _, batches = shuffled_epochs()
    batches[10] = batches[9]
    assert audits.repeated_batches(np.arange(32), batches) == []
    assert audits.repeated_batches(np.arange(9), [np.arange(16)] * 9) == []  # full-batch training


def test_samples_repeated_by_a_resume_in_mid_epoch():
    epoch, batches = shuffled_epochs()
    # Epoch 2 is begun anew after 3 batches, with another shuffle.
    again = np.split(np.random.default_rng(9).permutation(128), 8)
    epoch = np.concatenate([epoch[:19], np.full(8, 2), epoch[24:]])
    batches = batches[:19] + again + batches[24:]
    found = one(audits.repeated_samples(np.arange(len(epoch)), epoch, batches))
    assert (found.kind, found.step) == ("repeated_samples", 16)


def test_samples_nearly_repeated():
    epoch, batches = shuffled_epochs()
    assert audits.repeated_samples(np.arange(32), epoch, batches) == []
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 128, 16) for _ in range(32)]  # sampling with replacement
    assert audits.repeated_samples(np.arange(32), epoch, drawn) == []
    batches[3] = np.concatenate([batches[3][:-1], batches[4][:1]])  # one sample is there twice
    assert audits.repeated_samples(np.arange(32), epoch, batches) == []


def test_same_order():
    epoch = np.repeat(np.arange(3), 8)
    batches = np.split(np.arange(128), 8) * 3
    assert one(audits.same_order(np.arange(24), epoch, batches)).kind == "same_order"
    batches[23] = batches[23][::-1]
    assert audits.same_order(np.arange(24), epoch, batches) == []
    assert audits.same_order(np.arange(8), epoch[:8], batches[:8]) == []


def test_sorted_labels():
    labels = np.split(np.repeat(np.arange(10), 64), 20)
    assert one(audits.sorted_labels(np.arange(20), labels)).kind == "sorted_labels"
    mixed = np.split(np.random.default_rng(0).permutation(np.repeat(np.arange(10), 64)), 20)
    assert audits.sorted_labels(np.arange(20), mixed) == []
    rare = np.split(np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 36, 4])), 20)
    assert audits.sorted_labels(np.arange(20), rare) == []  # unbalanced, not sorted
    assert audits.sorted_labels(np.arange(20), np.split(np.arange(640), 20)) == []  # not classes at all


def test_eval_while_training():
    names = ["", "dropout", "norm"]
    modes = np.ones((60, 3), dtype=bool)
    modes[20:] = False
    found = one(audits.eval_while_training(np.arange(60), names, modes))
    assert (found.kind, found.step) == ("eval_while_training", 20)


@pytest.mark.parametrize("case", ["frozen norm", "never trained", "comes back", "short"])
def test_nearly_eval_while_training(case):
    modes = np.ones((60, 3), dtype=bool)
    if case == "frozen norm":
        modes[20:, 2] = False
    elif case == "never trained":
        modes[:] = False
    elif case == "comes back":
        modes[20:40] = False
    else:
        modes[55:] = False
    assert audits.eval_while_training(np.arange(60), ["", "dropout", "norm"], modes) == []


def test_train_while_evaluating():
    left = np.zeros(60, dtype=bool)
    left[[19, 39, 59]] = True
    per_step = np.ones(60, dtype=int)
    counter = np.concatenate([[0], np.cumsum(per_step)])[:60]
    assert audits.train_while_evaluating(np.arange(60), counter, left) == []
    leaking = counter + 5 * np.concatenate([[0], np.cumsum(left)])[:60]
    found = one(audits.train_while_evaluating(np.arange(60), leaking, left))
    assert (found.kind, found.step) == ("train_while_evaluating", 19)
    assert "5 batches" in found.evidence


def test_batchnorm_nearly_counting_in_evaluation():
    left = np.zeros(60, dtype=bool)
    left[[19, 39]] = True
    twice = np.where(np.arange(60) % 2, 5, 1)  # a GAN's critic runs more often
    counter = np.concatenate([[0], np.cumsum(twice)])[:60]
    assert audits.train_while_evaluating(np.arange(60), counter, left) == []


# --- a healthy run ----------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_silent():
    noise = np.exp(RNG.normal(0, 0.2, T))
    loss, norms = falling() * noise, falling(3, 0.2) * noise
    lr = 1e-3 * np.minimum(STEPS / 20, 1) * np.cos(STEPS / T * np.pi / 2)
    epoch = STEPS // 14
    sizes = np.where(STEPS % 14 == 13, 5, 128)
    silent = [
        audits.all_zero("loss", STEPS, loss),
        audits.constant("loss", STEPS, loss),
        audits.nonfinite("loss", STEPS, loss),
        audits.gaps(STEPS),
        audits.duplicates(STEPS),
        audits.clock_backwards(STEPS, 1.7e9 + np.cumsum(noise)),
        audits.means_disagree("loss", epoch, loss, sizes),
        audits.exploding_gradient(STEPS, norms),
        audits.vanishing_gradient(STEPS, norms, loss),
        audits.update_ratio("w", STEPS, lr * noise, np.ones(T)),
        audits.zero_learning_rate(STEPS, lr),
        audits.dead_features("l", STEPS, RNG.uniform(0.02, 0.5, (T, 8))),
        audits.features_converging("l", STEPS, RNG.normal(0, 0.01, T)),
        audits.forces_fighting("l", STEPS, RNG.normal(0, 0.05, (T, 64))),
    ]
    assert silent == [[]] * len(silent)
