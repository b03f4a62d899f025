"""Schedulers that step with every batch: LambdaLR warm-up chained to a cosine, and OneCycleLR for a second optimizer."""

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(37)
    data = TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    body, head = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1)), nn.Linear(16, 3)
    opt_body = torch.optim.AdamW(body.parameters(), lr=1e-2)
    opt_head = torch.optim.SGD(head.parameters(), lr=1e-2, momentum=0.9)
    warmup = lr_scheduler.LambdaLR(opt_body, lambda step: min(1.0, (step + 1) / 5))
    cosine = lr_scheduler.CosineAnnealingLR(opt_body, T_max=19)
    scheduler = lr_scheduler.SequentialLR(opt_body, [warmup, cosine], milestones=[5])
    one_cycle = lr_scheduler.OneCycleLR(opt_head, max_lr=0.1, total_steps=24)
    for epoch in range(3):
        for x, y in loader:
            opt_body.zero_grad()
            opt_head.zero_grad()
            loss = nn.functional.cross_entropy(head(body(x)), y)
            loss.backward()
            opt_body.step()
            opt_head.step()
            scheduler.step()
            one_cycle.step()
        print(f"epoch {epoch} lr {scheduler.get_last_lr()[0]:.8f} {one_cycle.get_last_lr()[0]:.8f}")
    print_final(body, head)


if __name__ == "__main__":
    train()
