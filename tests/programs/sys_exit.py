"""Ends with an exit code of its own."""

import atexit
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def main():
    atexit.register(print, "goodbye")
    torch.manual_seed(45)
    loader = DataLoader(TensorDataset(torch.randn(60, 4), torch.randn(60, 1)), batch_size=10, shuffle=True)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _epoch in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
    print_final(model)
    if loss.item() > 0.01:
        print("not converged", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
