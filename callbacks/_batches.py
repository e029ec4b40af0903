"""Which loader a batch comes from, and which part of it goes into the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor


def loader_of(trainer: Trainer, loop: str) -> Any:
    """The loader, of whatever class, that the first batch of a loop comes from.

    ``None`` if there is none, or several make one batch.

    Args:
        trainer: of ``lightning`` or ``pytorch_lightning``.
        loop: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
    """
    if loop == "train":
        loaders = trainer.train_dataloader
        return None if isinstance(loaders, Mapping | list | tuple) else loaders
    names = {"validate": "val_dataloaders", "test": "test_dataloaders", "predict": "predict_dataloaders"}
    loaders = getattr(trainer, names[loop])
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, list | tuple) else loaders


def inputs_of(batch: object, owner: str, *, floating: bool = False) -> Tensor:
    """The inputs of a batch: itself, or its first part.

    Args:
        batch: as a loader gives it.
        owner: who needs them.
        floating: whether they have to be floating-point numbers.

    Raises:
        TypeError: the batch begins with something else; names it, and who needs a tensor.

    >>> import torch
    >>> inputs_of([torch.ones(2, 3), torch.zeros(2)], "somebody").shape
    torch.Size([2, 3])
    """
    x = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if isinstance(x, Tensor) and (x.is_floating_point() or not floating):
        return x
    what = str(x.dtype).replace("torch.", "tensor of ") if isinstance(x, Tensor) else type(x).__name__
    needed = "a tensor of floating-point inputs" if floating else "a tensor of inputs"
    raise TypeError(f"a batch begins with a {what}: {owner} needs {needed}")
