"""Half way a frozen layer is unfrozen and its parameters are added to the optimizer as a new group."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(29)
    x = torch.randn(60, 8)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=10, shuffle=True)
    body, head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 1)
    model = nn.Sequential(body, head)
    body.requires_grad_(False)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for epoch in range(4):
        if epoch == 2:
            body.requires_grad_(True)
            optimizer.add_param_group({"params": body.parameters(), "lr": 1e-3})
        for xb, yb in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(xb), yb)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} groups {len(optimizer.param_groups)} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
