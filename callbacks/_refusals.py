"""What several callbacks refuse before a fit begins."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_effnn.callbacks._schedule import Schedule, epochs_of

_SHARDING = ("FSDP", "DeepSpeed", "ModelParallel")


def check_whole_weights(trainer: Any, callback: Any) -> None:
    """Refuse strategies under which a process holds a part of each weight only.

    Raises:
        MisconfigurationException: names the callback, the strategy and what would do.
    """
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in _SHARDING):
        raise MisconfigurationException(
            f"{type(callback).__name__} needs whole weights, and {strategy} shards them: use DDP or one device"
        )


def check_end(trainer: Any, callback: Any, *windows: Schedule | None) -> None:
    """Refuse a fit whose end isn't known, or into which a schedule does not fit.

    Raises:
        MisconfigurationException: names the callback and the argument of the Trainer, or the window.
    """
    epochs = epochs_of(trainer)
    if epochs is None and trainer.max_steps < 1:
        raise MisconfigurationException(
            f"{type(callback).__name__} has a schedule in a fit: it needs max_epochs or max_steps"
        )
    for window in windows:
        if window is not None:
            window.fractions(epochs)


def check_rounds_alone(trainer: Any, pl_module: Any, callback: Any) -> None:
    """Refuse two callbacks that round the same weight or activation: the later would undo the levels of the other.

    Those that round have a method ``rounds``, which names what they do.

    Raises:
        MisconfigurationException: names both callbacks, what they share and how to part it.
    """
    mine = callback.rounds(pl_module)
    for other in trainer.callbacks:
        if other is callback or not hasattr(other, "rounds"):
            continue
        shared = sorted(mine & other.rounds(pl_module))
        if shared:
            raise MisconfigurationException(
                f"{type(callback).__name__} and {type(other).__name__} would both round {', '.join(shared)}: leave each"
                " to one of them, by include and exclude, or in LowPrecisionSearch by weights=() or activations=()"
            )
