"""A GAN without a DataLoader: the discriminator steps twice for each step of the generator."""

import torch
from torch import nn
from weights_digest import print_final


def sample_real(n):
    return torch.randn(n, 1) * 0.5 + 2.0


def train():
    torch.manual_seed(8)
    generator = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    critic = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
    opt_c = torch.optim.RMSprop(critic.parameters(), lr=5e-3)
    opt_g = torch.optim.RMSprop(generator.parameters(), lr=5e-3)
    for step in range(12):
        for _ in range(2):
            opt_c.zero_grad()
            fake = generator(torch.randn(16, 3)).detach()
            loss_c = critic(fake).mean() - critic(sample_real(16)).mean()
            loss_c.backward()
            opt_c.step()
            with torch.no_grad():
                for p in critic.parameters():
                    p.clamp_(-0.3, 0.3)
        opt_g.zero_grad()
        loss_g = -critic(generator(torch.randn(16, 3))).mean()
        loss_g.backward()
        opt_g.step()
        if step % 4 == 0:
            print(f"step {step} critic {loss_c.item():.6f} generator {loss_g.item():.6f}")
    print_final(generator, critic)


if __name__ == "__main__":
    train()
