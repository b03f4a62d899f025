"""A dataset that augments at random with three generators: torch's, Python's and NumPy's."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from weights_digest import print_final


class Augmented(Dataset):
    def __init__(self, size):
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(size, 1, 8, 8, generator=generator)
        self.labels = torch.randint(0, 4, (size,), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if random.random() < 0.5:
            image = image.flip(-1)
        shift = int(np.random.randint(0, 3))
        image = torch.roll(image, shift, dims=-2)
        return image + 0.05 * torch.randn(image.shape), self.labels[index]


def train():
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    loader = DataLoader(Augmented(80), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(4):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} mean loss {total / len(loader):.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
