"""A GAN over a DataLoader: two optimizers step in every batch, the generator draws noise in the loop."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final

latent = 6


def train():
    torch.manual_seed(999)
    angles = torch.rand(120) * 6.2831853
    real_data = torch.stack([angles.cos(), angles.sin()], dim=1)
    loader = DataLoader(TensorDataset(real_data), batch_size=20, shuffle=True, drop_last=True)
    netG = nn.Sequential(nn.Linear(latent, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2))
    netD = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(24, 1))
    optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-3, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    fixed_noise = torch.randn(8, latent)
    for epoch in range(3):
        for i, (real,) in enumerate(loader):
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            netD.zero_grad()
            errD_real = criterion(netD(real), ones)
            errD_real.backward()
            fake = netG(torch.randn(len(real), latent))
            errD_fake = criterion(netD(fake.detach()), zeros)
            errD_fake.backward()
            optimizerD.step()
            netG.zero_grad()
            errG = criterion(netD(fake), ones)
            errG.backward()
            optimizerG.step()
            if i == 0:
                print(f"[{epoch}] D {errD_real.item() + errD_fake.item():.6f} G {errG.item():.6f}")
        with torch.no_grad():
            netG.eval()
            print(f"spread {netG(fixed_noise).std().item():.6f}")
            netG.train()
    print_final(netG, netD)


if __name__ == "__main__":
    train()
