"""NumPy arrays, a permutation per epoch, batches sliced by hand."""

import numpy as np
import torch
from torch import nn
from weights_digest import print_final


def train():
    np.random.seed(0)
    torch.manual_seed(0)
    X = np.random.randn(100, 7).astype(np.float32)
    Y = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
    batch = 20
    model = nn.Sequential(nn.Linear(7, 14), nn.ReLU(), nn.Dropout(0.1), nn.Linear(14, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(5):
        order = np.random.permutation(len(X))
        for i in range(0, len(X), batch):
            index = order[i : i + batch]
            inputs, labels = torch.from_numpy(X[index]), torch.from_numpy(Y[index])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
