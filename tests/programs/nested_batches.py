"""Batches that are dicts with nested tuples, a named tuple and strings, of varying length by the user's collate_fn."""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from weights_digest import print_final


class Sentence(NamedTuple):
    tokens: torch.Tensor
    length: torch.Tensor


class Corpus(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        length = 2 + index % 5
        tokens = (torch.arange(length) * 7 + index) % 30
        return {"name": f"item-{index}", "tokens": tokens, "target": float(index % 3), "aux": (index, [index * 0.5])}


def collate(items):
    lengths = torch.tensor([len(item["tokens"]) for item in items])
    padded = nn.utils.rnn.pad_sequence([item["tokens"] for item in items], batch_first=True)
    return {
        "sentence": Sentence(padded, lengths),
        "target": torch.tensor([item["target"] for item in items]),
        "meta": {"names": [item["name"] for item in items], "aux": [item["aux"] for item in items]},
        "weight": (torch.ones(len(items)), None, 0.5),
    }


def train():
    torch.manual_seed(16)
    loader = DataLoader(Corpus(), batch_size=8, shuffle=True, collate_fn=collate)
    embedding, head = nn.Embedding(30, 6), nn.Linear(7, 1)
    optimizer = torch.optim.Adam([*embedding.parameters(), *head.parameters()], lr=1e-2)
    for epoch in range(2):
        for batch in loader:
            sentence = batch["sentence"]
            mask = torch.arange(sentence.tokens.shape[1]) < sentence.length.unsqueeze(1)
            mean = (embedding(sentence.tokens) * mask.unsqueeze(-1)).sum(1) / sentence.length.unsqueeze(1)
            lengths = torch.tensor([len(name) / 10 for name in batch["meta"]["names"]]).unsqueeze(1)
            out = head(torch.cat([mean, lengths], 1)).squeeze(1)
            weight, nothing, scale = batch["weight"]
            assert nothing is None
            loss = scale * (weight * (out - batch["target"]).square()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f} last {batch['meta']['names'][-1]} {batch['meta']['aux'][0]}")
    print_final(embedding, head)


if __name__ == "__main__":
    train()
