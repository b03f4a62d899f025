"""A DataLoader with two workers, started anew at every epoch; the augmentation, a module as in torchvision, runs in them."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from weights_digest import print_final


class Jitter(nn.Module):
    def forward(self, x):
        return x * random.uniform(0.9, 1.1) + 0.01 * torch.randn(6)


class Noisy(Dataset):
    def __init__(self, size):
        self.jitter = Jitter()
        self.inputs = torch.linspace(-1, 1, size * 6).reshape(size, 6)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        x = self.jitter(self.inputs[index])
        return x, x.sum().unsqueeze(0)


def main():
    torch.manual_seed(11)
    loader = DataLoader(Noisy(48), batch_size=8, shuffle=True, num_workers=2)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for epoch in range(3):
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    main()
