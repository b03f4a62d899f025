"""Batches drawn by a function, `while True` with a counter that sets the learning rate and says when to evaluate."""

import math

import torch
from torch import nn
from weights_digest import print_final

max_iters, eval_interval = 24, 6


def train():
    torch.manual_seed(5)
    inputs = torch.randn(500, 12)
    targets = (inputs[:, :4] * inputs[:, 4:8]).sum(1, keepdim=True)

    def get_batch(split):
        low, high = (0, 400) if split == "train" else (400, 500)
        ix = torch.randint(low, high, (20,))
        return inputs[ix], targets[ix]

    model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    iter_num, best_val_loss = 0, float("inf")
    while True:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * iter_num / max_iters))
        if iter_num % eval_interval == 0:
            model.eval()
            with torch.no_grad():
                losses = []
                for _ in range(3):
                    x, y = get_batch("val")
                    losses.append(nn.functional.mse_loss(model(x), y).item())
            model.train()
            best_val_loss = min(best_val_loss, sum(losses) / 3)
            print(f"iter {iter_num} best val loss {best_val_loss:.6f}")
        x, y = get_batch("train")
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        iter_num += 1
        if iter_num >= max_iters:
            break
    print_final(model)


if __name__ == "__main__":
    train()
