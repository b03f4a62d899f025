"""The whole step is one compiled function, optimizer and all; batches are drawn by a function."""

import torch
from torch import nn
from weights_digest import print_final


def train(steps=14):
    torch.manual_seed(8)
    inputs, targets = torch.randn(100, 6), torch.randn(100, 2)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    @torch.compile(backend="eager")
    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    total = 0.0
    for _ in range(steps):
        picked = torch.randint(0, 100, (12,))
        total += float(step(inputs[picked], targets[picked]))
    print(f"loss {total / steps:.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
