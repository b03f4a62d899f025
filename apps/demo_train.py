"""Train a linear autoencoder 784-64-784 with BCL on its encoder: the demo's script (room: apps).

An ordinary training script: it runs by itself (`python apps/demo_train.py`) and, unchanged, under
`rewind record apps/demo_train.py`. The captures it and `apps.bcl` give cost nothing when nothing records.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import tracer
from apps.bcl import BCL, SOM_LR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SIDE = 28
FEATURES = 64
BATCH = 128


class Autoencoder(nn.Module):
    """Images [B, 1, 28, 28] to 64 linear features and back to [B, 784]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(SIDE * SIDE, FEATURES)
        self.decoder = nn.Linear(FEATURES, SIDE * SIDE)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructed pixels [B, 784] of images [B, 1, 28, 28]."""
        return self.decoder(self.encoder(images.flatten(1)))


def digits() -> TensorDataset:
    """The 1797 digits that scikit-learn ships, 8x8 enlarged to 28x28, as 8-bit grey levels in 0..1."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
    return TensorDataset((images * 255).round() / 255, torch.tensor(data.target))


def mnist(root: str) -> TensorDataset:
    """MNIST's training images from files that torchvision finds under `root`; it downloads nothing."""
    from torchvision.datasets import MNIST  # noqa: PLC0415 - torchvision is slow to import and seldom wanted

    data = MNIST(root, train=True, download=False)
    return TensorDataset(data.data[:, None].float() / 255, data.targets)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the BCL autoencoder.")
    parser.add_argument("--steps", type=int, default=500)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--decoupled", action="store_true", help="mask the gradient by rank score alone")
    mode.add_argument("--control", action="store_true", help="no BCL at all")
    parser.add_argument("--som", choices=sorted(SOM_LR), default="medium", help="speed of the SOM")
    parser.add_argument("--mnist", metavar="ROOT", help="train on MNIST from this folder instead of the digits")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> float:
    """Train for `args.steps` steps; the last loss."""
    torch.manual_seed(args.seed)
    data = mnist(args.mnist) if args.mnist else digits()
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    bcl = None if args.control else BCL(model.encoder, coupled=not args.decoupled, som_lr=SOM_LR[args.som])
    step, epoch, loss = 0, 0, torch.tensor(float("nan"))
    while step < args.steps:
        for images, _labels in loader:
            reconstruction = model(images)
            loss_per_sample = (reconstruction - images.flatten(1)).square().mean(dim=1)
            tracer.capture("batch/loss_per_sample", loss_per_sample.detach(), dims=("sample",))
            loss = loss_per_sample.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step >= args.steps:
                break
        epoch += 1
        print(f"epoch {epoch}: step {step}, loss {loss.item():.5f}")  # noqa: T201 - a script that reports
    if bcl is not None:
        bcl.remove()
    return loss.item()


if __name__ == "__main__":
    train(parse())
