"""Generators of random numbers that live in the module: NumPy's default_rng and a torch.Generator."""

import numpy as np
import torch
from torch import nn
from weights_digest import print_final

rng = np.random.default_rng(35)
generator = torch.Generator().manual_seed(35)
calls = {"count": 0}


def get_batch(inputs):
    calls["count"] += 1
    index = torch.from_numpy(rng.integers(0, len(inputs), 10))
    x = inputs[index]
    return x + 0.1 * torch.randn(x.shape, generator=generator), x


def train():
    torch.manual_seed(35)
    inputs = torch.rand(200, 8, generator=generator)
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(18):
        noisy, clean = get_batch(inputs)
        loss = nn.functional.mse_loss(model(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 6 == 0:
            print(f"batch {calls['count']} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
