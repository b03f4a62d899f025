"""Lazy modules: parameters and buffers that come into being with the first batch, in a model that has others before."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
samples = DataLoader(TensorDataset(torch.randn(24, 1, 6, 6), torch.randint(0, 3, (24,))), batch_size=6, shuffle=True)
model = nn.Sequential(
    nn.Conv2d(1, 2, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(3)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(3):
    for x, y in samples:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
