"""The loops that the benchmarks time: `run(steps, after)` trains from scratch and calls `after(model, optimizer, loss)` each step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

After = Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], None]


def digits() -> torch.Tensor:
    """scikit-learn's digits as float32 [1797, 784], enlarged from 8x8 to 28x28."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    return nn.functional.interpolate(images, size=(28, 28), mode="nearest").reshape(-1, 784).contiguous()


DATA = digits()


def nothing(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """The bare loop's `after`."""


def autoencoder(steps: int, after: After = nothing) -> None:
    """784-64-784, batch 128, Adam, drawn by hand: the 1.2 ms step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 64), nn.Linear(64, 784))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    done = 0
    while done < steps:
        order = torch.randperm(len(DATA))
        for i in range(0, len(DATA) - 127, 128):
            x = DATA[order[i : i + 128]]
            loss = nn.functional.mse_loss(model(x), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after(model, optimizer, loss)
            done += 1
            if done >= steps:
                break


def loader(steps: int, after: After = nothing) -> None:
    """The same model, fed by a shuffling DataLoader: a step of 3 ms, of which the loader takes the larger part."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 64), nn.Linear(64, 784))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = DataLoader(TensorDataset(DATA), batch_size=128, shuffle=True, drop_last=True)
    done = 0
    while done < steps:
        for (x,) in batches:
            loss = nn.functional.mse_loss(model(x), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after(model, optimizer, loss)
            done += 1
            if done >= steps:
                break


def convnet(steps: int, after: After = nothing) -> None:
    """A convnet of 1.6 M parameters on 64 images of 3x32x32, SGD with momentum: a step of 50 ms and more on two cores."""
    torch.manual_seed(0)
    widths = (3, 64, 128, 256, 256)
    blocks: list[Any] = []
    for a, b in pairwise(widths):
        blocks += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(512, 3, 32, 32), torch.randint(0, 10, (512,))
    for k in range(steps):
        chosen = torch.arange(64) + 64 * (k % 8)
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(model, optimizer, loss)
