"""What a re-executed step gave from inside, as the tab Replay shows it."""

from __future__ import annotations

import torch

from apps.views.activity import COLUMNS, MOST, activity, by_loss

NAN, INF = float("nan"), float("inf")


def test_a_row_for_each_module():
    given = {
        "0": torch.tensor([[0.0, 1.0], [NAN, 3.0]]),
        "half": torch.zeros(2, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 3),
        "lost": torch.tensor(NAN),
        "wave": torch.tensor([3 + 4j]),
    }
    assert activity(given) == [
        ["0", "2 x 2", "1.333", "1.247", "0", "3", "25.0%", "1"],
        ["half", "2", "0", "0", "0", "0", "100.0%", "0"],
        ["flags", "2", "0.5", "0.5", "0", "1", "50.0%", "0"],
        ["nothing", "0 x 3", "-", "-", "-", "-", "-", "0"],
        ["lost", "-", "-", "-", "-", "-", "0.0%", "1"],
        ["wave", "1", "5", "0", "5", "5", "0.0%", "0"],
    ]
    assert activity({"x": torch.tensor([INF, 1.0])})[0][2:6] == ["inf", "nan", "1", "inf"]
    many = activity({str(i): torch.zeros(1) for i in range(MOST + 3)})
    assert len(many) == MOST + 1
    assert many[-1][0].startswith("3 more")
    assert {len(row) for row in many} == {len(COLUMNS)}


def test_the_worst_samples_come_first():
    (found,) = by_loss({"mse_loss": torch.tensor([0.5, NAN, 2.0, 0.0, INF]), "none": torch.zeros(0)})
    assert found["name"] == "mse_loss, 5 samples"
    assert found["rows"] == [(1, "nan", 1.0), (4, "inf", 1.0), (2, "2", 1.0), (0, "0.5", 0.25), (3, "0", 0.0)]
    (zero,) = by_loss({"l1_loss": torch.zeros(2)})
    assert zero["rows"] == [(0, "0", 0.0), (1, "0", 0.0)]
    assert len(by_loss({"l1_loss": torch.arange(99.0)})[0]["rows"]) == 16
