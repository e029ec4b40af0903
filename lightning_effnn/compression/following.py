"""Latent weights for the optimisers, their projection for everybody else, whoever calls ``step``.

Torch calls global hooks around each ``step`` of each of its optimisers: raw ones, those within a gradient scaler, a
sharpness-aware or a lookahead wrapper, and those that step in the backward pass. Before a step the weights that it
moves are put back to their latent values, and afterwards their new projection is written. A step with a closure
evaluates the loss at the projection, however often it asks. Where an optimiser steps another one inside its own step,
as lookahead does, both move latent values, and the projection is written once the outer one is done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_effnn._exchanged import Exchanged

if TYPE_CHECKING:
    from lightning_effnn.compression.layer import Layer
    from lightning_effnn.compression.projector import Projector


class Following:
    """What :meth:`Projector.follow` returns; :meth:`remove` ends it. Also a context manager.

    >>> from lightning_effnn.compression import Projector
    >>> model = torch.nn.Linear(8, 4)
    >>> projector, optimizer = Projector(model), torch.optim.SGD(model.parameters(), 0.1)
    >>> projector.prune(0.5)
    >>> with projector.follow():
    ...     model(torch.ones(1, 8)).sum().backward()
    ...     optimizer.step()
    >>> projector.steps, round(projector.sparsity, 1)
    (1, 0.5)
    """

    def __init__(self, projector: Projector, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        self._projector = projector
        self._hooks = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]
        self._exchanged = Exchanged()
        for optimizer in optimizers:
            if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
                self._wrap(optimizer, "train")
                self._wrap(optimizer, "eval")

    def remove(self) -> None:
        """Follow no more; twice is no error."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._exchanged.put_back()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _layers(self, optimizer: Any) -> list[Layer]:
        return self._projector.of(p for group in optimizer.param_groups for p in group["params"])

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layers = self._layers(optimizer)
        if not layers:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # the first is the optimiser
        if not callable(closure):
            self._release(optimizer, layers)
            return None
        evaluate = self._evaluating(optimizer, layers, closure)
        if "closure" in kwargs:
            return args, kwargs | {"closure": evaluate}
        return (args[0], evaluate, *args[2:]), kwargs

    def _evaluating(self, optimizer: Any, layers: list[Layer], closure: Callable[[], Any]) -> Callable[[], Any]:
        def evaluate() -> Any:
            self._projector.capture(layers)
            loss = closure()
            self._release(optimizer, layers)
            return loss

        return evaluate

    def _release(self, optimizer: Any, layers: list[Layer]) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # of an optimiser that takes its gradients scaled
        lr = float(optimizer.param_groups[0].get("lr", 0.0))
        self._projector.restore(layers, lr if scale is None else lr / float(scale))

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layers = self._layers(optimizer)
        if layers and not {id(layer) for layer in layers} <= {id(layer) for layer in self._layers_of_outer()}:
            self._projector.steps += 1
            self._projector.capture(layers)

    def _layers_of_outer(self) -> list[Layer]:
        """Layers of the optimiser in whose step the one runs that has just ended."""
        steps = [frame for frame in _frames() if frame.f_code is _STEP]
        return self._layers(steps[1].f_locals["self"]) if len(steps) > 1 else []

    def _wrap(self, optimizer: Any, name: str) -> None:
        """Let a method that exchanges weights exchange latent ones."""
        method = getattr(optimizer, name)

        @wraps(method)
        def exchange(*args: Any, **kwargs: Any) -> Any:
            layers = self._layers(optimizer)
            self._projector.restore(layers)
            try:
                return method(*args, **kwargs)
            finally:
                self._projector.capture(layers)

        self._exchanged.exchange(optimizer, name, exchange)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


_STEP = torch.optim.Optimizer.profile_hook_step(lambda optimizer: None).__code__
"""What torch runs in place of any optimiser's ``step``: hooks, and between them the step itself."""
