"""A Trainer class: model, optimizer and step counter are attributes, the loop is a method; the lr follows the counter."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


class Trainer:
    def __init__(self, model, loader, lr=0.05):
        self.model = model
        self.loader = loader
        self.base_lr = lr
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.criterion = nn.CrossEntropyLoss()
        self.step = 0
        self.best = float("inf")

    def fit(self, epochs):
        for _epoch in range(epochs):
            for batch in self.loader:
                self.training_step(batch)
            print(f"step {self.step} best {self.best:.6f}")

    def training_step(self, batch):
        inputs, labels = batch
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr / (1 + 0.1 * self.step)
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(inputs), labels)
        if self.step % 3 == 0:
            loss = loss + 1e-3 * sum(p.square().sum() for p in self.model.parameters())
        loss.backward()
        self.optimizer.step()
        self.best = min(self.best, loss.item())
        self.step += 1


def train():
    torch.manual_seed(21)
    inputs = torch.randn(70, 9)
    labels = inputs[:, :3].argmax(1)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=10, shuffle=True)
    model = nn.Sequential(nn.Linear(9, 18), nn.BatchNorm1d(18), nn.ReLU(), nn.Linear(18, 3))
    trainer = Trainer(model, loader)
    trainer.fit(3)
    print_final(trainer.model)


if __name__ == "__main__":
    train()
