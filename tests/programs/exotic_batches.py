"""A collate_fn that gives lists of PIL pictures and of NumPy records, a nested tensor, and two kinds of sparse ones."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from weights_digest import print_final

warnings.filterwarnings("ignore")

from PIL import Image


class D(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        r = np.random.RandomState(i)
        img = Image.fromarray(r.randint(0, 255, (16, 16, 3), dtype=np.uint8))
        rec = np.zeros(3, dtype=[("a", "f4"), ("b", "i8")])
        rec["a"] = r.rand(3)
        rec["b"] = i
        return img, rec, r.rand(20, 16).astype(np.float32), i % 2


def collate(b):
    imgs, recs, arrs, ys = zip(*b)
    nested = torch.nested.nested_tensor([torch.from_numpy(a[: 3 + k]) for k, a in enumerate(arrs)])
    csr = torch.from_numpy(np.stack([a[0] for a in arrs])).relu().to_sparse_csr()
    coo = torch.from_numpy(np.stack([a[1] for a in arrs])).to_sparse()
    return list(imgs), list(recs), nested, csr, coo, torch.tensor(ys)


def train():
    torch.manual_seed(25)
    lin = nn.Linear(16, 2)
    opt = torch.optim.Adam(lin.parameters(), lr=1e-2)
    for e in range(2):
        for imgs, recs, nested, csr, coo, y in DataLoader(D(), batch_size=4, shuffle=True, collate_fn=collate):
            px = torch.stack([torch.from_numpy(np.asarray(i).copy()).float().mean((1, 2)) / 255 for i in imgs])
            a = torch.tensor([float(r["a"].sum()) for r in recs])
            h = torch.stack([t.mean(0) for t in nested.unbind()]) + px + csr.to_dense() + coo.to_dense()
            loss = (F.cross_entropy(lin(h), y, reduction="none") * a).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(e, f"{loss.item():.6f}")
    print_final(lin)


if __name__ == "__main__":
    train()
