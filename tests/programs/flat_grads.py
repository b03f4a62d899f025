"""Gradients that are pieces of one flat vector, which is clipped as a whole and set to zero in place."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(38)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    at = 0
    for p in model.parameters():
        p.grad = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    loader = DataLoader(TensorDataset(torch.randn(48, 5), torch.randn(48, 1)), batch_size=8, shuffle=True)
    for e in range(3):
        for x, y in loader:
            flat.zero_()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            flat.mul_(min(1.0, 0.5 / float(flat.norm())))
            opt.step()
        print(e, f"{loss.item():.6f} {flat.norm().item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
