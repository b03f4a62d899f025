"""An autoencoder whose decoder is the encoder's weight transposed, and a head that shares a parameter by assignment."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(10, 6)
        self.mirror = nn.Linear(10, 6, bias=False)
        self.mirror.weight = self.encoder.weight
        self.decoder_bias = nn.Parameter(torch.zeros(10))

    def forward(self, x):
        code = torch.tanh(self.encoder(x)) + 0.1 * self.mirror(x)
        return code @ self.encoder.weight + self.decoder_bias


def train():
    torch.manual_seed(27)
    loader = DataLoader(TensorDataset(torch.randn(48, 10)), batch_size=8, shuffle=True)
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(3):
        for (x,) in loader:
            loss = (model(x) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f} tied {model.mirror.weight is model.encoder.weight}")
    print_final(model)


if __name__ == "__main__":
    train()
