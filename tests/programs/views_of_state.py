"""A flat vector that all parameters are views of, a running mean of which the last part is looked at, both changed in place."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def main():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    at = 0
    for p in model.parameters():
        p.data = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    loader = DataLoader(TensorDataset(torch.randn(64, 6), torch.randn(64, 1)), batch_size=8, shuffle=True)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    average = torch.zeros(40)
    head, tail = average[:10], average[30:]
    weights = [p.data for p in model.parameters()]
    for epoch in range(3):
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x) + tail.mean() + head.mean(), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            average.mul_(0.9).add_(flat[:40], alpha=0.1)
            head.clamp_(-0.05, 0.05)
            with torch.no_grad():
                flat.mul_(0.999)
                for w in weights:
                    w.clamp_(-0.5, 0.5)
        print(f"epoch {epoch} {loss.item():.6f} {average.sum().item():.6f}")
    print_final(model)


if __name__ == "__main__":
    main()
