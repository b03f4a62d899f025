"""A sparse embedding with SparseAdam beside a dense head with Adagrad."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


def train():
    torch.manual_seed(12)
    words = torch.randint(0, 50, (90, 6))
    labels = (words.sum(1) % 2).float()
    loader = DataLoader(TensorDataset(words, labels), batch_size=15, shuffle=True)
    embedding = nn.EmbeddingBag(50, 8, sparse=True, mode="sum")
    head = nn.Linear(8, 1)
    sparse_opt = torch.optim.SparseAdam(embedding.parameters(), lr=1e-2)
    dense_opt = torch.optim.Adagrad(head.parameters(), lr=1e-2)
    for epoch in range(3):
        for tokens, label in loader:
            sparse_opt.zero_grad()
            dense_opt.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(head(embedding(tokens)).squeeze(1), label)
            loss.backward()
            sparse_opt.step()
            dense_opt.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(embedding, head)


if __name__ == "__main__":
    train()
