"""Trains one model, then another of a different size with another optimizer."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train(model, optimizer, loader, epochs):
    for epoch in range(epochs):
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")


def main():
    torch.manual_seed(23)
    x = torch.randn(60, 5)
    loader = DataLoader(TensorDataset(x, x.norm(dim=1, keepdim=True)), batch_size=12, shuffle=True)
    small = nn.Linear(5, 1)
    train(small, torch.optim.SGD(small.parameters(), lr=0.05), loader, 2)
    large = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    train(large, torch.optim.Adam(large.parameters(), lr=1e-2), loader, 3)
    print_final(small, large)


if __name__ == "__main__":
    main()
