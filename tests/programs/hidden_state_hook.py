"""A forward hook object with a counter and a table that it recomputes every 7 calls; it has no state_dict."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


class NeighbourPull:
    """Pulls each unit of a layer's output towards its nearest neighbours, found anew every `every` calls."""

    def __init__(self, module, every=7):
        self.every = every
        self.calls = 0
        self.neighbours = None
        self.average = {}
        self.handle = module.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        if not module.training:
            return output
        if self.calls % self.every == 0:
            weight = nn.functional.normalize(module.weight.detach(), dim=1)
            self.neighbours = (weight @ weight.T - 2 * torch.eye(len(weight))).topk(2, dim=1).indices
        self.calls += 1
        mean = output.detach().mean(0)
        self.average["mean"] = 0.9 * self.average.get("mean", mean) + 0.1 * mean
        return output + 0.1 * output[:, self.neighbours].mean(2) - 0.01 * self.average["mean"]


def train():
    torch.manual_seed(34)
    loader = DataLoader(TensorDataset(torch.rand(70, 9)), batch_size=14, shuffle=True)
    model = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 9))
    NeighbourPull(model[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(4):
        for (x,) in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), x)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
