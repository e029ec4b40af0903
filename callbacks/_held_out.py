"""The user's loss on batches that are not trained on, in the middle of training and without a trace of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_effnn._random import random_state_kept
from lightning_effnn.callbacks._batches import loader_of
from lightning_effnn.callbacks._put_back import put_back


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

    Nothing is logged. What the step writes is put back (:func:`put_back`): running statistics, metrics, random numbers,
    the module's attributes, buffers, and parameters that no optimiser moves, such as those of a momentum encoder.

    Args:
        trainer, pl_module: of the fit.
        batch: on the model's device.
        seed: of the random numbers drawn in the step.

    Raises:
        TypeError: if ``training_step`` returns neither a loss nor a mapping that holds one.
    """
    takes = 2 if _takes_number(pl_module.training_step) else 1
    with _unnoticed(trainer, pl_module, seed), trainer.precision_plugin.val_step_context():
        result = pl_module.training_step(*(batch, 0)[:takes])
    loss = result.get("loss") if isinstance(result, dict) else result
    if loss is None:  # a batch that the model passes over
        return float("nan")
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"training_step returned a {type(loss).__name__}: a loss, or a dict with the key 'loss', is needed"
        )
    return float(loss.detach())


def _takes_number(training_step: Any) -> bool:
    """Whether it is called with the number of the batch too, as Lightning does."""
    parameters = inspect.signature(training_step).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(named) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


@contextmanager
def _unnoticed(trainer: Trainer, pl_module: LightningModule, seed: int) -> Iterator[None]:
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(p.device for p in pl_module.parameters()))
        stack.enter_context(torch.no_grad())
        stack.enter_context(put_back(pl_module, trained))
        torch.manual_seed(seed)
        stack.callback(setattr, trainer, "loggers", trainer.loggers)
        trainer.loggers = [DummyLogger() for _ in trainer.loggers]
        pl_module.__dict__.update({name: _nothing for name in ("log", "log_dict") if name not in pl_module.__dict__})
        pl_module.eval()
        yield


def _nothing(*_: object, **__: object) -> None:
    """In place of ``log``."""
