"""The loop is an installed library's: the script calls its `fit`, and the library asks the loader one batch ahead."""

import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "site-packages"))

from tinyframe import Trainer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.2), nn.Tanh(), nn.Linear(12, 1))

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self.body(x), y)


def main():
    torch.manual_seed(3)
    x = torch.randn(56, 6)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
    net = Net()
    trainer = Trainer(net, torch.optim.AdamW(net.parameters(), lr=1e-2), loader)
    trainer.fit(epochs=5, at_most=11)
    trainer.loader.loader = DataLoader(loader.dataset, batch_size=7, shuffle=True)
    trainer.fit_in_groups(epochs=3)
    print_final(net)


if __name__ == "__main__":
    main()
