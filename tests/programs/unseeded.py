"""Seeds nothing: every run is another one."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    loader = DataLoader(TensorDataset(torch.randn(60, 5), torch.randn(60, 1)), batch_size=10, shuffle=True)
    model = nn.Sequential(nn.Linear(5, 10), nn.Dropout(0.2), nn.Linear(10, 1))
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
