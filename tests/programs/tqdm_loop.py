"""A progress bar around the DataLoader, with the loss as its postfix."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final

try:
    from tqdm import tqdm
except ImportError:

    def tqdm(iterable, **_):
        return iterable


def train():
    torch.manual_seed(31)
    data = TensorDataset(torch.randn(60, 7), torch.randint(0, 3, (60,)))
    loader = DataLoader(data, batch_size=10, shuffle=True)
    model = nn.Sequential(nn.Linear(7, 14), nn.Dropout(0.3), nn.ReLU(), nn.Linear(14, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(3):
        bar = tqdm(loader, desc=f"epoch {epoch}")
        for x, y in bar:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if hasattr(bar, "set_postfix"):
                bar.set_postfix(loss=loss.item())
    print_final(model)


if __name__ == "__main__":
    train()
