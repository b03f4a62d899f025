"""A validation loop over a DataLoader, in train mode by mistake, without no_grad and without a backward."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(39)
    data = TensorDataset(torch.randn(96, 5), torch.randn(96, 1))
    train_set, val_set = torch.utils.data.random_split(data, [64, 32])
    train_loader = DataLoader(train_set, batch_size=16, shuffle=True)
    val_loader = DataLoader(val_set, batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(5, 10), nn.BatchNorm1d(10), nn.Dropout(0.2), nn.Linear(10, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(4):
        for x, y in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
        val = 0.0
        for x, y in val_loader:
            val += nn.functional.mse_loss(model(x), y).item()
        print(f"epoch {epoch} val {val / len(val_loader):.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
