"""Semi-supervised: a loader of labelled data drives the loop, a second one of unlabelled data is drawn from with next."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(41)
    labelled = DataLoader(TensorDataset(torch.randn(40, 6), torch.randint(0, 3, (40,))), batch_size=8, shuffle=True)
    unlabelled = DataLoader(TensorDataset(torch.randn(33, 6)), batch_size=11, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    iterator = iter(unlabelled)
    for epoch in range(4):
        for x, y in labelled:
            try:
                (u,) = next(iterator)
            except StopIteration:
                iterator = iter(unlabelled)
                (u,) = next(iterator)
            consistency = (model(u).softmax(1) - model(u).softmax(1)).square().mean()
            loss = nn.functional.cross_entropy(model(x), y) + consistency
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
