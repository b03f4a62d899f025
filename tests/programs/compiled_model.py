"""torch.compile(model) fed by a DataLoader whose last batch is ragged; the loss is compiled by itself."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final

torch.manual_seed(3)
inputs = torch.randn(70, 8)
targets = inputs[:, :1] * inputs[:, 1:2]
loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.1), nn.Linear(24, 1))
compiled = torch.compile(model, backend="eager", fullgraph=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


@torch.compile(backend="eager")
def weighted(output, target):
    return ((output - target) ** 2).mean()


for epoch in range(3):
    for x, y in loader:
        loss = weighted(compiled(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print_final(model)
