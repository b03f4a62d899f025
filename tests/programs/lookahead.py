"""An optimizer of the user's own around Adam: it counts, and keeps slow weights as attributes beside its `state`."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


class Lookahead(torch.optim.Optimizer):
    def __init__(self, base, every=5, alpha=0.5):
        self.base, self.every, self.alpha, self.count = base, every, alpha, 0
        self.slow = [[p.detach().clone() for p in group["params"]] for group in base.param_groups]
        super().__init__([p for group in base.param_groups for p in group["params"]], {"lr": base.defaults["lr"]})

    def step(self, closure=None):
        loss = self.base.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            with torch.no_grad():
                for group, slow in zip(self.base.param_groups, self.slow):
                    for p, s in zip(group["params"], slow):
                        s.add_(p - s, alpha=self.alpha)
                        p.copy_(s)
        return loss

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad(set_to_none)


def train():
    torch.manual_seed(4)
    loader = DataLoader(TensorDataset(torch.randn(96, 8)), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 8))
    optimizer = Lookahead(torch.optim.Adam(model.parameters(), lr=5e-3))
    for epoch in range(3):
        for (x,) in loader:
            loss = (model(x) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f} after {optimizer.count}")
    print_final(model)


if __name__ == "__main__":
    train()
