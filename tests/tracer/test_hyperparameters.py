from __future__ import annotations

import pytest
import torch

from tracer import hyperparameters
from tracer.errors import NameUnknownError, UsageError


def _adam(*groups):
    return torch.optim.Adam([{"params": [torch.zeros(1, requires_grad=True)], **group} for group in groups], lr=0.1)


def test_listed_by_short_name_and_group():
    one, two = _adam({}), _adam({"lr": 1}, {"lr": 2.0})
    known = hyperparameters.listed({"main:optimizer": one, "train.fit.other": two})
    assert known["optimizer.lr"] == 0.1
    assert known["optimizer.betas"] == [0.9, 0.999]
    assert (known["other.0.lr"], known["other.1.lr"]) == (1, 2.0)
    assert "optimizer.params" not in known


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("optimizer.lr", 0.5, [0.5, 0.5]),
        ("optimizer.lr", "*0.5", [0.05, 1.0]),
        ("optimizer.lr", "2x", [0.2, 4.0]),
        ("optimizer.1.lr", 3, [0.1, 3.0]),
        ("main:optimizer.lr", 1, [1.0, 1.0]),
    ],
)
def test_apply(name, change, expected):
    optimizer = _adam({}, {"lr": 2.0})
    found = {"main:optimizer": optimizer}
    hyperparameters.check(found, {name: change})
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 2.0]
    hyperparameters.apply(found, {name: change})
    assert [g["lr"] for g in optimizer.param_groups] == expected
    assert all(type(g["lr"]) is float for g in optimizer.param_groups)


def test_kinds_are_kept():
    optimizer = _adam({})
    optimizer.param_groups[0]["lr"] = rate = torch.tensor(0.1)
    hyperparameters.apply({"o": optimizer}, {"optimizer.lr": 0.2, "o.betas": [0.5, 0.6], "o.amsgrad": True})
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.2)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)


@pytest.mark.parametrize("change", [True, "fast", None, [1.0], "*fast"])
def test_unfit_values_are_refused(change):
    with pytest.raises(UsageError):
        hyperparameters.check({"main:optimizer": _adam({})}, {"optimizer.lr": change})


def test_unknown_and_ambiguous_names():
    with pytest.raises(NameUnknownError, match=r"there are: optimizer\.lr"):
        hyperparameters.check({"main:optimizer": _adam({})}, {"optimizer.rate": 1})
    with pytest.raises(NameUnknownError, match="params"):
        hyperparameters.check({"main:optimizer": _adam({})}, {"optimizer.params": 1})
    with pytest.raises(NameUnknownError, match="several"):
        hyperparameters.check({"a.optimizer": _adam({}), "b.optimizer": _adam({})}, {"optimizer.lr": 1})
