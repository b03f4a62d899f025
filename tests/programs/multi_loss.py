"""Several losses: two backward calls on one graph, a third through torch.autograd.backward, a penalty by autograd.grad."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(6)
    data = TensorDataset(torch.randn(72, 10), torch.randn(72, 2), torch.randint(0, 3, (72,)))
    loader = DataLoader(data, batch_size=12, shuffle=True)
    trunk = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Dropout(0.2))
    regression, classification = nn.Linear(20, 2), nn.Linear(20, 3)
    parameters = [*trunk.parameters(), *regression.parameters(), *classification.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for epoch in range(3):
        for x, y, label in loader:
            optimizer.zero_grad()
            x.requires_grad_(True)
            features = trunk(x)
            loss_r = nn.functional.mse_loss(regression(features), y)
            loss_c = nn.functional.cross_entropy(classification(features), label)
            (slope,) = torch.autograd.grad(loss_r, x, create_graph=True)
            loss_r.backward(retain_graph=True)
            loss_c.backward(retain_graph=True)
            torch.autograd.backward([0.1 * slope.square().mean(), 0.01 * features.abs().mean()])
            optimizer.step()
        print(f"epoch {epoch} regression {loss_r.item():.6f} classification {loss_c.item():.6f}")
    print_final(trunk, regression, classification)


if __name__ == "__main__":
    train()
