"""Batches drawn by a function; a `for` counter decides when to evaluate, and evaluating draws random numbers too."""

import torch
from torch import nn
from weights_digest import print_final


def train():
    torch.manual_seed(15)
    inputs = torch.randn(300, 10)
    targets = inputs.abs().sum(1, keepdim=True)

    def get_batch():
        ix = torch.randint(0, 300, (16,))
        return inputs[ix], targets[ix]

    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 1))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3, momentum=0.5)
    for it in range(20):
        if it % 4 == 0:
            with torch.no_grad():
                x, y = get_batch()
                print(f"iter {it} eval loss {nn.functional.l1_loss(model(x), y).item():.6f}")
        x, y = get_batch()
        loss = nn.functional.l1_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print_final(model)


if __name__ == "__main__":
    train()
