"""An IterableDataset that streams random samples: no length, no index."""

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from weights_digest import print_final


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        for _ in range(self.samples):
            x = torch.randn(4)
            yield x, x.prod().unsqueeze(0)


def train():
    torch.manual_seed(14)
    loader = DataLoader(Stream(50), batch_size=8)
    model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 1))
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-2)
    for epoch in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.huber_loss(model(x), y)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
