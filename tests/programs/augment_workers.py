"""Two workers that live on, and augment at random with generators of the process and one of the dataset's own; dropout in the model."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from weights_digest import print_final


class Augmented(Dataset):
    def __init__(self, size):
        self.images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(size) % 5
        self.rng = np.random.default_rng(5)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if random.random() < 0.5:
            image = image.flip(-1)
        image = torch.roll(image, int(np.random.randint(0, 4)), 1)
        return image + 0.05 * torch.randn(image.shape) + float(self.rng.normal()), self.labels[index]


def main():
    torch.manual_seed(1)
    loader = DataLoader(Augmented(96), 16, shuffle=True, num_workers=2, persistent_workers=True)
    validation = DataLoader(Augmented(32), 16, num_workers=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(3):
        model.train()
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in validation)
        print(f"epoch {epoch} loss {loss.item():.6f} right {right}")
    print_final(model)


if __name__ == "__main__":
    main()
