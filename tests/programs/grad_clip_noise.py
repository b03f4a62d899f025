"""Gradients clipped by norm, then noise added to them, as in differentially private training."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(38)
    data = TensorDataset(torch.randn(60, 6), torch.randint(0, 2, (60,)))
    loader = DataLoader(data, batch_size=10, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for p in model.parameters():
                p.grad.add_(torch.randn_like(p.grad), alpha=0.01)
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f} norm {norm.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
