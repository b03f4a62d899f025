"""Early stopping: patience on the validation loss, the best weights restored at the end."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(33)
    x = torch.randn(80, 6)
    y = x[:, :1] * 2 + 0.5 * torch.randn(80, 1)
    train_loader = DataLoader(TensorDataset(x[:40], y[:40]), batch_size=10, shuffle=True)
    val_loader = DataLoader(TensorDataset(x[40:], y[40:]), batch_size=20)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
    best, best_state, patience = float("inf"), None, 0
    for epoch in range(30):
        model.train()
        for xb, yb in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(xb), yb)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            val = sum(nn.functional.mse_loss(model(xb), yb).item() for xb, yb in val_loader) / len(val_loader)
        if val < best:
            best, best_state, patience = val, copy.deepcopy(model.state_dict()), 0
        else:
            patience += 1
            if patience >= 3:
                print(f"stopped after epoch {epoch}, best {best:.6f}")
                break
    model.load_state_dict(best_state)
    print_final(model)


if __name__ == "__main__":
    train()
