"""An endless generator around the DataLoader, drawn from with next(), which outlives the loop; training is counted in steps."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def cycle(loader):
    while True:
        yield from loader


torch.manual_seed(32)
data = TensorDataset(torch.randn(50, 5), torch.randn(50, 2))
batches = cycle(DataLoader(data, batch_size=12, shuffle=True, drop_last=True))


def train():
    model = nn.Sequential(nn.Linear(5, 10), nn.Dropout(0.1), nn.ReLU(), nn.Linear(10, 2))
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-2)
    for step in range(22):
        x, y = next(batches)
        optimizer.zero_grad()
        loss = nn.functional.smooth_l1_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            print(f"step {step} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
