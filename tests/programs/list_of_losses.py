"""Losses are appended to a list; the learning rate is halved when the mean of its tail stops falling."""

import torch
from torch import nn
from weights_digest import print_final


def train():
    torch.manual_seed(43)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses, best, history = [], None, {"lr": [], "batches": []}
    step = 0
    while step < 24:
        x = torch.randn(8, 4)
        loss = (model(x) - x.pow(2).sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        history["lr"].append(optimizer.param_groups[0]["lr"])
        recent = sum(losses[-4:]) / len(losses[-4:])
        if len(losses) >= 4 and best is not None and recent > best:
            optimizer.param_groups[0]["lr"] *= 0.5
        best = recent if best is None else min(best, recent)
        step += 1
    print(f"best {best:.6f} lr {history['lr'][-1]} losses {len(losses)}")
    print_final(model)


if __name__ == "__main__":
    train()
