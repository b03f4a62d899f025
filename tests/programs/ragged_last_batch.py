"""The last batch of an epoch has one sample where the others have sixteen; sum of losses weighted by batch size."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(18)
    dataset = TensorDataset(torch.randn(65, 6), torch.randint(0, 2, (65,)))
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 2))
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2)
    for epoch in range(3):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        print(f"epoch {epoch} loss {total / len(dataset):.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
