"""One scheduler of each kind after the other under the same name: state of one is none of another."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weights_digest import print_final


from torch.optim import lr_scheduler as L
def main():
    torch.manual_seed(5)
    model = nn.Linear(5, 1)
    loader = DataLoader(TensorDataset(torch.randn(40, 5), torch.randn(40, 1)), batch_size=8, shuffle=True)
    make = [lambda o: L.CosineAnnealingWarmRestarts(o, 3), lambda o: L.SequentialLR(o, [L.LinearLR(o, 0.1, total_iters=3), L.ExponentialLR(o, 0.9)], [3]),
            lambda o: L.ReduceLROnPlateau(o, patience=0), lambda o: L.LambdaLR(o, lambda s: 1 / (1 + s)), lambda o: L.OneCycleLR(o, 0.1, total_steps=10),
            lambda o: L.ChainedScheduler([L.ConstantLR(o), L.MultiStepLR(o, [2, 4])]), lambda o: L.CyclicLR(o, 0.001, 0.1, step_size_up=3), lambda o: L.PolynomialLR(o, 10, 2.0), lambda o: L.MultiplicativeLR(o, lambda s: 0.95)]
    for f in make:
        opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        sched = f(opt)
        for epoch in range(2):
            for x, y in loader:
                loss = F.mse_loss(model(x), y)
                opt.zero_grad(); loss.backward(); opt.step()
                sched.step(loss.item()) if isinstance(sched, L.ReduceLROnPlateau) else sched.step() if getattr(sched, "last_epoch", 0) < 10 else None
        print(type(sched).__name__, f"{loss.item():.6f} {opt.param_groups[0]['lr']:.6f}")
    print_final(model)
main()
