"""Half way a module is replaced by one with the same tensors and another function, its parameters are added to the optimizer, and later the optimizer is made anew, of another kind."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(22)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    loader = DataLoader(TensorDataset(torch.randn(40, 5), torch.randn(40, 1)), batch_size=8, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(4):
        if epoch == 2:
            model[1] = nn.Tanh()
            model[2] = nn.Linear(8, 1)
            optimizer.add_param_group({"params": model[2].parameters(), "lr": 1e-3})
        if epoch == 3:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for x, y in loader:
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(epoch, f"{loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
