"""NumPy arrays that are shuffled in place at every epoch: the order of the data is itself state."""

import numpy as np
import torch
from torch import nn
from weights_digest import print_final


def train():
    np.random.seed(42)
    torch.manual_seed(42)
    data = np.random.rand(80, 6).astype(np.float32)
    model = nn.Sequential(nn.Linear(5, 10), nn.Sigmoid(), nn.Linear(10, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    for epoch in range(5):
        np.random.shuffle(data)
        for i in range(0, 80, 16):
            batch = torch.from_numpy(data[i : i + 16])
            loss = (model(batch[:, :5]) - batch[:, 5:]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
