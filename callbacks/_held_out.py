"""The user's loss on batches that are not trained on, in the middle of training and without a trace of it."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_effnn._random import random_state_kept
from lightning_effnn.callbacks._batches import loader_of
from lightning_effnn.formats.tagging import aside


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

    Nothing is logged. What the step writes is put back: running statistics, metrics, random numbers, the module's
    attributes, buffers, and parameters that no optimiser moves, such as those of a momentum encoder.

    Args:
        trainer, pl_module: of the fit.
        batch: on the model's device.
        seed: of the random numbers drawn in the step.

    Raises:
        TypeError: if ``training_step`` returns neither a loss nor a mapping that holds one.
    """
    takes = len(inspect.signature(pl_module.training_step).parameters)
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


@contextmanager
def _unnoticed(trainer: Trainer, pl_module: LightningModule, seed: int) -> Iterator[None]:
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(p.device for p in pl_module.parameters()))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_state_kept(pl_module, trained))
        torch.manual_seed(seed)
        pl_module.__dict__.update({name: _nothing for name in ("log", "log_dict") if name not in pl_module.__dict__})
        pl_module.eval()
        yield


@contextmanager
def _state_kept(model: nn.Module, trained: Container[int]) -> Iterator[None]:
    """Put back what ``training_step`` may have written: momentum encoders, queues, counts, outputs, metrics.

    What an optimiser moves is left to it, for a copy would double the largest part.
    """
    tensors: list[Tensor] = [p for p in model.parameters() if id(p) not in trained]
    places = [(p, p.data) for p in model.parameters()]  # some write by putting another tensor there
    modules = list(model.modules())
    buffers = [(module, dict(module._buffers)) for module in modules]
    tensors += [tensor for _, own in buffers for tensor in own.values() if tensor is not None]
    with aside():  # a trace is of the step alone
        copies = [tensor.detach().clone() for tensor in tensors]
    attributes = [(module, {n: (v, _copied(v)) for n, v in vars(module).items() if n not in _OF_TORCH})
                  for module in modules]  # fmt: skip
    try:
        yield
    finally:
        with aside():
            for parameter, place in places:
                if parameter.data_ptr() != place.data_ptr():
                    parameter.data = place
            for module, own in buffers:
                module._buffers.update(own)
            for tensor, before_it in zip(tensors, copies, strict=True):
                tensor.data.copy_(before_it)
            for module, before in attributes:
                for name in set(vars(module)) - set(before) - _OF_TORCH:
                    del vars(module)[name]
                vars(module).update({name: _put_back(*pair) for name, pair in before.items()})


_OF_TORCH = set(vars(nn.Module())) - {"training"}
"""Where a module keeps parameters, submodules and hooks."""


def _nothing(*_: object, **__: object) -> None:
    """In place of ``log``."""


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor) and not value.is_inference():  # which nobody can write into here
        return value.detach().clone()
    return copy(value) if isinstance(value, list | dict | set | deque) else value


def _put_back(value: Any, before: Any) -> Any:
    """The same object, with what was in it."""
    if isinstance(value, Tensor) and value is not before:
        value.data.copy_(before)
    elif isinstance(value, list | deque):
        value.clear()
        value.extend(before)
    elif isinstance(value, dict | set):
        value.clear()
        value.update(before)
    return value
