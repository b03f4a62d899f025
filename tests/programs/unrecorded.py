"""Noise from the operating system in every step: no seed can bring it back."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def main():
    torch.manual_seed(48)
    loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), batch_size=8, shuffle=True)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _epoch in range(2):
        for x, y in loader:
            noise = torch.tensor(list(os.urandom(len(x))), dtype=torch.float32).unsqueeze(1) / 255
            loss = nn.functional.mse_loss(model(x + noise), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print_final(model)


if __name__ == "__main__":
    main()
