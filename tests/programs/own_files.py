"""Reads what it wrote itself: resumes where its checkpoint is, keeps the best, appends to logs and reads them, clears up old files."""

import csv
import json
import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final

EPOCHS = 6


def read_log(path):
    with open(path) as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def main():
    torch.manual_seed(71)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start, best = 0, float("inf")
    if os.path.exists("ckpt.pt"):
        found = torch.load("ckpt.pt")
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        start, best = found["epoch"] + 1, found["best"]
    else:
        os.mkdir("kept")
        with open("config.json", "x") as file:
            json.dump({"lr": 1e-2}, file)
    x = torch.randn(32, 6)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
    log = open("log.csv", "w", newline="")  # noqa: SIM115  as loggers do: it stays open
    writer = csv.writer(log)
    writer.writerow(["epoch", "loss"])
    for epoch in range(start, start + EPOCHS):
        total = 0.0
        for inputs, targets in loader:
            loss = nn.functional.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        writer.writerow([epoch, total])
        log.flush()
        with open("log.txt", "a") as file:
            file.write(f"{epoch} {total}\n")
        lines = Path("log.txt").read_text().splitlines()
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + len(read_log("log.csv"))) + 1e-4 * len(lines)
        if total < best:
            best = total
            torch.save(model.state_dict(), "best.tmp")
            os.replace("best.tmp", "best.pt")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "best": best}
        torch.save(state, "ckpt.pt")
        torch.save(model.state_dict(), f"kept/epoch{epoch}.pt")
        for old in sorted(Path("kept").glob("*.pt"))[:-2]:
            old.unlink()
        if epoch % 3 == 2:
            model.load_state_dict(torch.load("best.pt"))
            with torch.no_grad():
                model[0].weight.mul_(1 + 0.01 * len(os.listdir("kept")))
    log.close()
    print_final(model)


if __name__ == "__main__":
    main()
