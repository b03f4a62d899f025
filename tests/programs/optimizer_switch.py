"""Adam at first, SGD with momentum from the third epoch on, as a new object under the same name."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(21)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    loader = DataLoader(TensorDataset(torch.randn(40, 5), torch.randn(40, 1)), batch_size=8, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(5):
        if epoch == 2:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        for x, y in loader:
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(epoch, f"{loss.item():.6f}", type(optimizer).__name__)
    print_final(model)


if __name__ == "__main__":
    train()
