"""The user's loss on batches that are not trained on, in the middle of training and without a trace of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from lightning_effnn._random import random_state_kept
from lightning_effnn.callbacks._batches import loader_of


class HeldOut:
    """Batches of the first validation loader, over and over; without one, the training batch at hand.

    Args:
        trainer: in a fit, once its loaders can be made.
        position: batches taken so far, to go on from there.

    Attributes:
        validation: whether they are validation batches.
    """

    def __init__(self, trainer: Trainer, position: int = 0) -> None:
        self.position = position
        self._loader = _validation_loader(trainer)
        self.validation = self._loader is not None
        self._batches: Iterator[Any] | None = None

    def batch(self, trainer: Trainer, training_batch: Any) -> Any:
        """Return the next batch, on the model's device."""
        if self._loader is None:
            return training_batch
        with random_state_kept():  # a loader's iterator draws a seed
            if self._batches is None:
                self._batches = islice(iter(self._loader), self.position % len(self._loader), None)
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(self._loader)
                batch = next(self._batches)
        self.position += 1
        batch = trainer.precision_plugin.convert_input(batch)
        return trainer.strategy.batch_to_device(batch)


def _validation_loader(trainer: Trainer) -> Any:
    if not trainer.enable_validation:
        return None
    if trainer.val_dataloaders is None:  # before the first validation
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loader = loader_of(trainer, "validate")
    try:
        return loader if loader and len(loader) else None
    except TypeError as error:
        raise ValueError(f"the validation loader is a {type(loader).__name__} without a length: give it one") from error


def held_out_loss(trainer: Trainer, pl_module: LightningModule, batch: object, seed: int) -> float:
    """Return what ``training_step`` says of a batch, in eval mode and without gradients.

    Nothing is logged, no running statistic, metric or random number of the fit is touched.

    Args:
        trainer, pl_module: of the fit.
        batch: on the model's device.
        seed: of the random numbers drawn in the step.

    Raises:
        TypeError: if ``training_step`` returns neither a loss nor a mapping that holds one.
    """
    takes = len(inspect.signature(pl_module.training_step).parameters)
    with _unnoticed(pl_module, seed), trainer.precision_plugin.val_step_context():
        result = pl_module.training_step(*(batch, 0)[:takes])
    loss = result.get("loss") if isinstance(result, dict) else result
    if loss is None:  # a batch that the model passes over
        return float("nan")
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"training_step returned a {type(loss).__name__}: a loss, or a dict with the key 'loss', is needed"
        )
    return float(loss.detach())


@contextmanager
def _unnoticed(pl_module: LightningModule, seed: int) -> Iterator[None]:
    modes = [(module, module.training) for module in pl_module.modules()]
    metrics = [(module, _metric_state(module)) for module in pl_module.modules() if isinstance(module, Metric)]
    muted = {name: _nothing for name in ("log", "log_dict") if name not in pl_module.__dict__}
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(p.device for p in pl_module.parameters()))
        stack.enter_context(torch.no_grad())
        torch.manual_seed(seed)
        pl_module.__dict__.update(muted)
        pl_module.eval()
        try:
            yield
        finally:
            for name in muted:
                del pl_module.__dict__[name]
            for module, mode in modes:
                module.training = mode
            for module, state in metrics:
                module.__dict__.update(state)


def _nothing(*_: object, **__: object) -> None:
    """In place of ``log``."""


def _metric_state(metric: Metric) -> dict[str, object]:
    """The sums of a metric so far: plain attributes that an update replaces or adds to."""
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    return {name: _copied(metric.__dict__[name]) for name in names if name in metric.__dict__}


def _copied(value: object) -> object:
    return value.detach().clone() if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value
