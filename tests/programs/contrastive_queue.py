"""Momentum contrast: a second encoder that follows the first, a queue of keys in a plain attribute, a pointer into it."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


class Contrast:
    def __init__(self, encoder, size=24):
        self.query = encoder
        self.key = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = nn.functional.normalize(torch.randn(size, 6), dim=1)
        self.pointer = 0

    def __call__(self, x):
        q = nn.functional.normalize(self.query(x + 0.1 * torch.randn_like(x)), dim=1)
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters()):
                slow.lerp_(fast, 0.05)
            k = nn.functional.normalize(self.key(x + 0.1 * torch.randn_like(x)), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1) / 0.2
        loss = nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        self.queue = self.queue.clone()
        self.queue[self.pointer : self.pointer + len(k)] = k
        self.pointer = (self.pointer + len(k)) % len(self.queue)
        return loss


def train():
    torch.manual_seed(54)
    loader = DataLoader(TensorDataset(torch.randn(48, 10)), batch_size=8, shuffle=True)
    contrast = Contrast(nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6)))
    optimizer = torch.optim.SGD(contrast.query.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        for (x,) in loader:
            loss = contrast(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f} pointer {contrast.pointer}")
    print_final(contrast.query, contrast.key)


if __name__ == "__main__":
    train()
