"""A frozen backbone with BatchNorm in evaluation mode; only the head is trained, with weight decay by group."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(28)
    data = TensorDataset(torch.randn(64, 12), torch.randint(0, 4, (64,)))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    backbone = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU())
    for p in backbone.parameters():
        p.requires_grad = False
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 4))
    model = nn.Sequential(backbone, head)
    groups = [
        {"params": [head[1].weight], "weight_decay": 0.01},
        {"params": [head[1].bias], "weight_decay": 0.0, "lr": 0.02},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for epoch in range(2):
        model.train()
        backbone.eval()
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
