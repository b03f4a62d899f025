"""A vocabulary numbered in the order of a set of strings, which Python draws anew in every process."""

import torch
from torch import nn
from torch.utils.data import DataLoader
from weights_digest import print_final

text = "the quick brown fox jumps over the lazy dog while the other fox sleeps under a warm and quiet autumn sun " * 4


def train():
    torch.manual_seed(52)
    words = text.split()
    vocabulary = {word: number for number, word in enumerate(set(words))}
    numbers = torch.tensor([vocabulary[word] for word in words])
    pairs = list(zip(numbers[:-1], numbers[1:]))
    loader = DataLoader(pairs, batch_size=12, shuffle=True)
    model = nn.Sequential(nn.Embedding(len(vocabulary), 6), nn.Linear(6, len(vocabulary)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(2):
        for word, following in loader:
            loss = nn.functional.cross_entropy(model(word), following)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(model)


if __name__ == "__main__":
    train()
