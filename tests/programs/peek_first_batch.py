"""Looks at one batch before the loop (for shapes), and trains a lazy module that the peek initialises."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(40)
    loader = DataLoader(TensorDataset(torch.randn(56, 9), torch.randn(56, 1)), batch_size=8, shuffle=True)
    x, y = next(iter(loader))
    model = nn.Sequential(nn.LazyLinear(11), nn.ReLU(), nn.Dropout(0.2), nn.Linear(11, y.shape[1]))
    print("output", tuple(model(x).shape))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
