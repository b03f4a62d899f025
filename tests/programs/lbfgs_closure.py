"""LBFGS: the optimizer calls the closure several times in each step."""

import torch
from torch import nn
from weights_digest import print_final


def train():
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 60).unsqueeze(1)
    y = torch.sin(2 * x) + 0.05 * torch.randn_like(x)
    model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, history_size=6)
    criterion = nn.MSELoss()
    for i in range(12):

        def closure():
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if i % 3 == 0:
            print(f"step {i} loss {loss.item():.8f}")
    print_final(model)


if __name__ == "__main__":
    train()
