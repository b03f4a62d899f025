"""Tiny training loops for tests: a linear model on eight numbers, and nothing slow."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset


def data(samples=20, features=3):
    """Samples and targets, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, features, generator=generator), torch.randn(samples, 1, generator=generator)


def loader(samples=20, batch=4, shuffle=True):
    """A loader over `data`."""
    return DataLoader(TensorDataset(*data(samples)), batch_size=batch, shuffle=shuffle)


def make():
    """A model and its optimizer, from a fixed seed."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(epochs=2, samples=20, batch=4, each=None):
    """Train; `each(step, model, loss)` is called in every step. Return the model."""
    model, optimizer = make()
    batches = loader(samples, batch)
    step = 0
    for epoch in range(epochs):  # noqa: B007  the recorder reads it
        for x, y in batches:
            optimizer.zero_grad()
            loss = ((model(x + 0.01 * torch.randn_like(x)) - y) ** 2).mean()
            loss.backward()
            optimizer.step()
            if each is not None:
                each(step, model, loss)
            step += 1
    return model


def train_rows(at_step=lambda k: None, steps=40, momentum=0.0):
    """Train on samples large enough to be stored once, by content; `at_step(k)` comes first. Return the final weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(80, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    batches = DataLoader(TensorDataset(torch.randn(2 * steps, 80), torch.randn(2 * steps, 3)), batch_size=2)
    for k, (x, y) in enumerate(batches):
        at_step(k)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_without_loader(steps=12):
    """A loop without a DataLoader: each step of the optimizer is a step."""
    model, optimizer = make()
    x, y = data()
    rate = 0.05
    for it in range(steps):
        chosen = torch.randint(0, len(x), (4,))
        loss = ((model(x[chosen]) - y[chosen]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate / (1 + it)
        optimizer.step()
    return model
