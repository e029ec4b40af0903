"""Callbacks that monitor a metric wait until the network is what ships."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer

from lightning_effnn._exchanged import Exchanged
from lightning_effnn.callbacks._base import callbacks_of

_HOOKS = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")
"""Where checkpoints are written and a fit is stopped early."""


def let_wait(trainer: Trainer, ready: Callable[[], bool]) -> Exchanged:
    """Pass over the hooks of callbacks with a ``monitor`` until ``ready`` says yes; put back what is returned.

    Args:
        trainer: its callbacks.
        ready: asked each time.
    """
    exchanged = Exchanged()
    for callback in callbacks_of(trainer):
        if getattr(callback, "monitor", None) is not None:
            for name in _HOOKS:
                exchanged.exchange(callback, name, _once(getattr(callback, name), ready))
    return exchanged


def _once(hook: Callable[..., None], ready: Callable[[], bool]) -> Callable[..., None]:
    def asked(*args: object, **kwargs: object) -> None:
        if ready():
            hook(*args, **kwargs)

    return asked
