"""The default collate_fn over samples that are named tuples of numbers, NumPy arrays and dicts."""

from collections import namedtuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from weights_digest import print_final

Sample = namedtuple("Sample", ["features", "label", "extra"])


def make(index):
    features = np.cos(np.arange(6) * (index + 1)).astype(np.float32)
    return Sample(features, index % 4, {"weight": 0.5 + 0.1 * (index % 2), "tag": "ab"[index % 2]})


def train():
    torch.manual_seed(17)
    loader = DataLoader([make(i) for i in range(50)], batch_size=8, shuffle=True)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for epoch in range(2):
        for batch in loader:
            losses = nn.functional.cross_entropy(model(batch.features), batch.label, reduction="none")
            sign = torch.tensor([1.0 if tag == "a" else 0.5 for tag in batch.extra["tag"]])
            loss = (losses * batch.extra["weight"] * sign).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
