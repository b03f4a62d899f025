"""torch.func: gradients by functional_call and grad, parameters copied back into the module's own for the optimizer."""

import torch
from torch import nn
from torch.func import functional_call, grad_and_value
from weights_digest import print_final


def train():
    torch.manual_seed(55)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss_fn(params, x, y):
        return (functional_call(model, params, (x,)) - y).square().mean()

    for step in range(16):
        x = torch.randn(10, 4)
        grads, loss = grad_and_value(loss_fn)(dict(model.named_parameters()), x, x.sum(1, keepdim=True))
        for name, p in model.named_parameters():
            p.grad = grads[name]
        optimizer.step()
        if step % 5 == 0:
            print(f"step {step} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
