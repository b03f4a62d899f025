"""What others write at every step, in the same loops: a context manager each that gives the `after` of a loop."""

from __future__ import annotations

import array
import contextlib
import json
import math
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.benchmarks.loops import After


@contextlib.contextmanager
def torch_save(folder: Path) -> Iterator[After]:
    """torch.save of model and optimizer at every step."""
    count = iter(range(1 << 30))

    def after(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"{next(count)}.pt")

    yield after


@contextlib.contextmanager
def safetensors(folder: Path) -> Iterator[After]:
    """safetensors of the weights at every step."""
    count = iter(range(1 << 30))

    def after(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        save_file(model.state_dict(), folder / f"{next(count)}.safetensors")

    yield after


@contextlib.contextmanager
def distributed_async(folder: Path) -> Iterator[After]:
    """torch.distributed.checkpoint.async_save of model and optimizer at every tenth step, drained at the end."""
    import torch.distributed.checkpoint as checkpoint

    count = iter(range(1 << 30))
    waiting: list[Any] = []

    def after(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        k = next(count)
        if k % 10 == 0:
            if waiting:
                waiting.pop().result()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            waiting.append(checkpoint.async_save(state, checkpoint_id=str(folder / str(k)), no_dist=True))

    yield after
    for future in waiting:
        future.result()


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[After]:
    """One TensorBoard scalar, the loss, at every step."""
    from torch.utils.tensorboard import SummaryWriter

    count = iter(range(1 << 30))
    with SummaryWriter(str(folder)) as writer:

        def after(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
            writer.add_scalar("loss", loss.item(), next(count))

        yield after


@contextlib.contextmanager
def wandb_offline(folder: Path) -> Iterator[After]:
    """One wandb scalar, the loss, at every step, offline; its process is started before and ended after."""
    import wandb

    count = iter(range(1 << 30))
    with wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True)) as run:

        def after(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
            run.log({"loss": loss.item()}, step=next(count))

        yield after


@contextlib.contextmanager
def floor(folder: Path) -> Iterator[After]:
    """No peer, but a limit: what detail replay writes of a step, by the least Python there is, for this one loop alone.

    The samples' hashes, the gradients' norm, the hashes of the parameters, the generators' state, a line of JSON and one write;
    no loop variables, no keyframes, nothing that would be right for another program, nothing at the end.
    """
    known: dict[bytes, int] = {}
    given: list[torch.Tensor] = []
    views: list[memoryview] = []
    twister = np.random.get_state
    fd = os.open(folder / "floor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def forward(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if type(module) is nn.Sequential:
            keys = map(xxhash.xxh3_128_digest, args[0].detach().numpy())
            given[:] = [known.setdefault(key, len(known)) for key in keys]

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        norms = [torch.linalg.vector_norm(p.grad).item() for g in optimizer.param_groups for p in g["params"]]
        given.append(math.hypot(*norms))

    def after(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        if not views:
            views.extend(memoryview(p.detach().numpy()).cast("B") for p in model.parameters())
        hashes = list(map(xxhash.xxh3_64_intdigest, views))
        norm = given.pop()
        ids = array.array("I", given).tobytes()
        random_state = torch.get_rng_state().numpy().tobytes() + twister()[1].tobytes()
        line = {"loss": loss.item(), "norm": norm, "hashes": hashes, "rng": xxhash.xxh3_64_hexdigest(random_state)}
        os.writev(fd, [json.dumps(line | {"time": time.time()}).encode(), ids])

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(forward),
        register_optimizer_step_pre_hook(before),
    ]
    try:
        yield after
    finally:
        for hook in hooks:
            hook.remove()
        os.close(fd)


PEERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[After]]] = {
    "torch.save, full state, every step": torch_save,
    "safetensors, weights, every step": safetensors,
    "distributed.checkpoint async, every 10th step": distributed_async,
    "TensorBoard, one scalar, every step": tensorboard,
    "wandb offline, one scalar, every step": wandb_offline,
    "the same facts by the least Python, for this loop alone (a limit, no peer)": floor,
}
