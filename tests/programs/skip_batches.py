"""Some batches are skipped with `continue`, others by an exception that the loop catches."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def check(x):
    if x.mean() > 0.25:
        raise ValueError("outlier")


def train():
    torch.manual_seed(50)
    loader = DataLoader(TensorDataset(torch.randn(80, 4), torch.randn(80, 1)), batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    skipped = 0
    for epoch in range(2):
        for x, y in loader:
            if y.mean() < -0.2:
                skipped += 1
                continue
            try:
                check(x)
            except ValueError:
                skipped += 1
                continue
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y) * (1 + 0.1 * skipped)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} skipped {skipped} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
