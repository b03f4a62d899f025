"""Raises in the middle of step 9."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    torch.manual_seed(44)
    loader = DataLoader(TensorDataset(torch.randn(60, 4), torch.randn(60, 1)), batch_size=10, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    step = 0
    for epoch in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            if step == 9:
                raise RuntimeError(f"bad batch in epoch {epoch}")
            optimizer.step()
            step += 1
        print(f"epoch {epoch} loss {loss.item():.6f}")


if __name__ == "__main__":
    main()
