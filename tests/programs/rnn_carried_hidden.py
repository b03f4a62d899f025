"""Truncated backpropagation through time: the hidden state of an LSTM is carried from batch to batch."""

import torch
from torch import nn
from weights_digest import print_final


def train():
    torch.manual_seed(10)
    series = torch.sin(torch.arange(0, 641) * 0.1) + 0.05 * torch.randn(641)
    inputs, targets = series[:-1].view(4, 160), series[1:].view(4, 160)
    rnn, head = nn.LSTM(1, 12, num_layers=2, dropout=0.1, batch_first=True), nn.Linear(12, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=1e-2)
    for epoch in range(3):
        hidden = None
        for start in range(0, 160, 20):
            x = inputs[:, start : start + 20].unsqueeze(-1)
            y = targets[:, start : start + 20].unsqueeze(-1)
            if hidden is not None:
                hidden = tuple(h.detach() for h in hidden)
            out, hidden = rnn(x, hidden)
            loss = nn.functional.mse_loss(head(out), y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rnn.parameters(), 0.5)
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.6f}")
    print_final(rnn, head)


if __name__ == "__main__":
    train()
