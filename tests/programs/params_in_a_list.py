"""Parameters as bare tensors in a list, as in makemore; an optimizer over the list, and the learning rate by hand."""

import torch
import torch.nn.functional as F
from weights_digest import print_final


def main():
    g = torch.Generator().manual_seed(2147483647)
    X = torch.randint(0, 27, (200, 3), generator=g)
    Y = torch.randint(0, 27, (200,), generator=g)
    C = torch.randn((27, 10), generator=g)
    W1 = torch.randn((30, 40), generator=g) * 0.1
    b1 = torch.randn(40, generator=g) * 0.1
    W2 = torch.randn((40, 27), generator=g) * 0.1
    b2 = torch.zeros(27)
    parameters = [C, W1, b1, W2, b2]
    for p in parameters:
        p.requires_grad = True
    opt = torch.optim.SGD(parameters, lr=0.1)
    lossi = []
    for i in range(24):
        ix = torch.randint(0, X.shape[0], (32,), generator=g)
        emb = C[X[ix]]
        h = torch.tanh(emb.view(-1, 30) @ W1 + b1)
        logits = h @ W2 + b2
        loss = F.cross_entropy(logits, Y[ix])
        for p in parameters:
            p.grad = None
        loss.backward()
        opt.step()
        for p in parameters:
            p.data.clamp_(-3, 3)
        lossi.append(loss.log10().item())
    print(f"{loss.item():.6f} {sum(lossi):.6f}")
    class M:
        def state_dict(self): return {f"p{i}": p for i, p in enumerate(parameters)}
    print_final(M())


if __name__ == "__main__":
    main()
