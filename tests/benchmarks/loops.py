"""The loops that the benchmarks time: `run(steps, after)` trains from scratch and calls `after(model, optimizer, loss)` each step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models import resnet18

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
    _on_noise(model, optimizer, (64, 3, 32, 32), steps, after)


def resnet(steps: int, after: After = nothing) -> None:
    """torchvision's ResNet-18, 11 M parameters, on 32 images of 3x64x64, SGD with momentum."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    _on_noise(model, optimizer, (32, 3, 64, 64), steps, after)


def _on_noise(
    model: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], steps: int, after: After
) -> None:
    """Classify noise: eight batches of `shape`, in turn."""
    size = shape[0]
    images, labels = torch.randn(8 * size, *shape[1:]), torch.randint(0, 10, (8 * size,))
    for k in range(steps):
        chosen = torch.arange(size) + size * (k % 8)
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(model, optimizer, loss)


class Transformer(nn.Module):
    """A GPT of 4 layers, width 256, 8 heads, a vocabulary of 512 and windows of 128 tokens."""

    def __init__(self) -> None:
        """With the parameters that torch draws."""
        super().__init__()
        self.tokens, self.places = nn.Embedding(512, 256), nn.Embedding(128, 256)
        layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 512)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(128))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, 128] to logits [B, 128, 512]."""
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.layers(hidden, mask=self.mask, is_causal=True))


def gpt(steps: int, after: After = nothing) -> None:
    """`Transformer`, 3.5 M parameters, on 8 windows that are drawn by hand, AdamW."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    text = torch.randint(0, 512, (100_000,))
    for _ in range(steps):
        starts = torch.randint(len(text) - 129, (8,))
        windows = torch.stack([text[i : i + 129] for i in starts.tolist()])
        logits = model(windows[:, :-1])
        loss = nn.functional.cross_entropy(logits.reshape(-1, 512), windows[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(model, optimizer, loss)


class Cropped(Dataset):
    """512 images of 3x72x72, cut to 64x64 at a random place and mirrored at random: no batch comes twice."""

    def __init__(self) -> None:
        """Noise: nothing compresses it."""
        self.images = torch.rand(512, 3, 72, 72, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        top, left, mirrored = torch.randint(0, 8, (3,)).tolist()
        image = self.images[index][:, top : top + 64, left : left + 64]
        return image.flip(-1) if mirrored < 4 else image, index % 10


def augmented(steps: int, after: After = nothing) -> None:
    """A small convnet on batches of 64 that never come again: a step of 40 ms and more."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters())
    batches = DataLoader(Cropped(), 64, shuffle=True)
    done = 0
    while done < steps:
        for images, labels in batches:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after(model, optimizer, loss)
            done += 1
            if done >= steps:
                break
