"""Two moving averages of the weights: AveragedModel, and a dict kept by hand which the loss uses as a teacher."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(4)
    loader = DataLoader(TensorDataset(torch.randn(80, 8)), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    ema_model = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(4):
        for (x,) in loader:
            noisy = x + 0.1 * torch.randn_like(x)
            teacher = torch.func.functional_call(model, shadow, (x,)).detach()
            with torch.no_grad():
                target = ema_model(x)
            out = model(noisy)
            loss = (out - x).square().mean() + 0.3 * (out - teacher).square().mean() + 0.1 * (out - target).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema_model.update_parameters(model)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    shadow[name].mul_(0.95).add_(p, alpha=0.05)
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print("shadow", sum(v.double().sum().item() for v in shadow.values()))
    print_final(model, ema_model)


if __name__ == "__main__":
    train()
