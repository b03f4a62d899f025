"""Batches that lie oddly in memory: columns of a matrix, channels last, expanded, every other row, overlapping windows."""

import torch
from torch import nn
from torch.utils.data import DataLoader
from weights_digest import print_final


def collate(samples):
    images = torch.stack(samples).contiguous(memory_format=torch.channels_last)
    signal = torch.stack([s.flatten() for s in samples], 1).t()
    windows = signal.contiguous().unfold(1, 32, 16)
    bias = torch.arange(4.0).view(4, 1, 1, 1).expand(len(samples), 3, 8, 8)[:, :, :, ::2]
    return {"images": images, "signal": signal[:, ::2], "windows": windows, "bias": torch.ones(1, 80).expand(len(samples), 80)}


def train():
    torch.manual_seed(3)
    data = [torch.randn(3, 8, 8) for _ in range(32)]
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    lin = nn.Linear(96, 4)
    win = nn.Linear(32, 4)
    model = nn.ModuleList([conv, lin, win])
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(3):
        for b in loader:
            a = conv(b["images"]).mean((2, 3)).sum(1)
            c = lin(b["signal"]).sum(1)
            d = win(b["windows"]).mean((1, 2))
            loss = (a + c + d + b["bias"].sum(1)).square().mean()
            print(b["images"].stride(), b["signal"].stride(), b["windows"].stride(), b["bias"].stride())
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(f"epoch {epoch} {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
