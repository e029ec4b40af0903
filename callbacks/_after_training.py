"""What comes after all that others do at the end of the training, and a validation of what that gives."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer

from lightning_effnn._exchanged import Exchanged


def after_training(pl_module: LightningModule, then: Callable[[], None]) -> Exchanged:
    """Call ``then`` behind the module's own ``on_train_end``, which comes behind those of all callbacks.

    Args:
        pl_module: the model in training.
        then: called once.

    Returns:
        The exchange of the hook, which ends with the call; put it back where the fit fails before.
    """
    own, exchanged = pl_module.on_train_end, Exchanged()

    def last() -> None:
        exchanged.put_back()
        own()
        then()

    exchanged.exchange(pl_module, "on_train_end", last)
    return exchanged


def validated(trainer: Trainer) -> dict[str, float]:
    """Run the fit's own validation once more; what it logs.

    Args:
        trainer: at the end of the training.
    """
    trainer.validating = True
    try:
        results = trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training = True
    return {name: float(value) for result in results for name, value in result.items()}
