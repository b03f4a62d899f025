"""Everything in double precision by the default dtype."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(25)
    x = torch.randn(64, 3)
    loader = DataLoader(TensorDataset(x, x.prod(1, keepdim=True)), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(3, 20), nn.Softplus(), nn.Linear(20, 1))
    optimizer = torch.optim.Rprop(model.parameters(), lr=1e-3)
    for epoch in range(5):
        for xb, yb in loader:
            optimizer.zero_grad()
            loss = (model(xb) - yb).square().mean()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.12f}")
    print_final(model)


if __name__ == "__main__":
    main()
