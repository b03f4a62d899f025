"""What others write at every step, in the same loops: a context manager each that gives the `after` of a loop."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

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


PEERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[After]]] = {
    "torch.save, full state, every step": torch_save,
    "safetensors, weights, every step": safetensors,
    "distributed.checkpoint async, every 10th step": distributed_async,
    "TensorBoard, one scalar, every step": tensorboard,
}
