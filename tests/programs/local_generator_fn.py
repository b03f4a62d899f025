"""Batches from the user's own generator function, which keeps its random generator and position to itself."""

import numpy as np
import torch
from torch import nn
from weights_digest import print_final


def batches(inputs, targets, size, count):
    rng = np.random.default_rng(36)
    for number in range(count):
        index = rng.choice(len(inputs), size, replace=False)
        yield torch.from_numpy(inputs[index]) * (1 + 0.01 * number), torch.from_numpy(targets[index])


def train():
    torch.manual_seed(36)
    inputs = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)
    targets = np.abs(inputs).sum(1, keepdims=True)
    model = nn.Sequential(nn.Linear(5, 10), nn.ReLU(), nn.Dropout(0.1), nn.Linear(10, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, y in batches(inputs, targets, 12, 18):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
