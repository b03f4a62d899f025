"""The loss becomes NaN at step 7, and the weights with it; training goes on."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def main():
    torch.manual_seed(46)
    x = torch.rand(75, 3)
    x[7 * 5 + 2, 1] = -1.0
    loader = DataLoader(TensorDataset(x), batch_size=5)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step, (xb,) in enumerate(loader):
        loss = (model(xb).squeeze(1) - xb.log().sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    main()
