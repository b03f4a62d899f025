"""The loop's state lies in a dataclass and in a nonlocal variable of a nested function; functions get it as argument."""

from dataclasses import dataclass, field

import torch
from torch import nn
from weights_digest import print_final


@dataclass
class TrainState:
    step: int = 0
    momentum: float = 0.0
    recent: list = field(default_factory=list)
    noise: torch.Tensor = field(default_factory=lambda: torch.zeros(3))


def train():
    torch.manual_seed(51)
    inputs = torch.randn(60, 3)
    state, model = TrainState(), nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cursor = 0

    def next_batch():
        nonlocal cursor
        batch = inputs[cursor : cursor + 6]
        cursor = (cursor + 7) % 54
        return batch

    def train_step(state):
        x = next_batch()
        state.noise = 0.9 * state.noise + 0.1 * torch.randn(3)
        loss = (model(x + state.noise).squeeze(1) - x.sum(1)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        state.momentum = 0.5 * state.momentum + 0.5 * loss.item()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + state.momentum)
        optimizer.step()
        state.step += 1
        state.recent = [*state.recent[-2:], loss.item()]

    while state.step < 20:
        train_step(state)
        if state.step % 5 == 0:
            print(f"step {state.step} momentum {state.momentum:.6f} recent {len(state.recent)}")
    print_final(model)


if __name__ == "__main__":
    train()
