"""Cross-validation: the same train() for three folds, each with a new model and optimizer."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from weights_digest import print_final


def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)


def train(fold, dataset, splits):
    indices = [i for other, split in enumerate(splits) if other != fold for i in split]
    loader = DataLoader(Subset(dataset, indices), batch_size=10, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(2):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    correct = evaluate(model, DataLoader(Subset(dataset, splits[fold]), batch_size=20))
    print(f"fold {fold} loss {loss.item():.6f} correct {correct}")
    return model


def main():
    torch.manual_seed(24)
    x = torch.randn(60, 4)
    dataset = TensorDataset(x, (x.sum(1) > 0).long())
    splits = torch.randperm(60).view(3, 20).tolist()
    models = [train(fold, dataset, splits) for fold in range(3)]
    print_final(*models)


if __name__ == "__main__":
    main()
