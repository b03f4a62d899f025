"""Loops built of itertools: count, zip with the DataLoader, islice, and a reversed list of temperatures."""

import itertools

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(53)
    loader = DataLoader(TensorDataset(torch.randn(50, 6), torch.randint(0, 3, (50,))), batch_size=6, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.1), nn.Linear(9, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counter = itertools.count(1)
    for temperature in reversed([1.0, 1.5, 2.0]):
        for (x, y), scale in zip(itertools.islice(loader, 7), itertools.cycle([1.0, 0.5])):
            number = next(counter)
            loss = scale * nn.functional.cross_entropy(model(x) / temperature, y) / number**0.1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"temperature {temperature} batches {number} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
