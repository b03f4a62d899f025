"""A collate_fn that makes graphs: objects with a store inside that knows its parent weakly, slots, a mapping, dataclasses."""

import weakref
from collections import UserDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from weights_digest import print_final


class Store:
    def __init__(self, parent, **tensors):
        self.parent = weakref.ref(parent)
        self.mapping = tensors


class Graph:
    __slots__ = ("__dict__", "__weakref__", "_size")

    def __init__(self, nodes, edges):
        self._size = len(nodes)
        self.store = Store(self, nodes=nodes, edges=edges)

    def __getattr__(self, name):
        try:
            return self.__dict__["store"].mapping[name]
        except KeyError:
            raise AttributeError(name) from None

    def doubled(self):
        return self.store.parent().store.mapping["nodes"] * 2


@dataclass
class Batch:
    graphs: list
    answers: UserDict


def make(index):
    generator = torch.Generator().manual_seed(index)
    count = 3 + index % 3
    nodes = torch.randn(count, 4, generator=generator)
    return Graph(nodes, torch.randint(count, (2, 6), generator=generator)), index % 2


def together(samples):
    graphs, labels = zip(*samples, strict=True)
    return Batch(list(graphs), UserDict(label=torch.tensor(labels), names=[f"g{g._size}" for g in graphs]))


def train():
    torch.manual_seed(71)
    loader = DataLoader([make(i) for i in range(22)], batch_size=4, shuffle=True, collate_fn=together)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for epoch in range(3):
        for batch in loader:
            pooled = [(g.doubled()[g.edges[0]] + g.nodes[g.edges[1]]).mean(0) * g._size for g in batch.graphs]
            batch.graphs.clear()
            loss = nn.functional.cross_entropy(model(torch.stack(pooled)), batch.answers["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f} {''.join(batch.answers['names'])}")
    print_final(model)


if __name__ == "__main__":
    train()
