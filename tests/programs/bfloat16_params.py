"""Parameters in bfloat16, a mask in half precision and an int8 buffer beside them."""

import torch
from torch import nn
from weights_digest import print_final


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(9, 17), nn.Linear(17, 3)
        self.register_buffer("mask", torch.ones(17))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int8))

    def forward(self, x):
        self.calls += 1
        return self.fc2(torch.relu(self.fc1(x)) * self.mask)


def train():
    torch.manual_seed(26)
    model = Model().to(torch.bfloat16)
    model.mask = model.mask.half().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for i in range(15):
        x = torch.randn(12, 9, dtype=torch.bfloat16)
        y = x[:, :3].float().argmax(1)
        loss = nn.functional.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 5 == 0:
            print(f"step {i} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
