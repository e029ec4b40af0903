"""Adding a term to a user's loss, in the one place from which autocast, scaling, accumulation and DDP come right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_effnn._exchanged import Exchanged
from lightning_effnn.callbacks._base import EffnnCallback

Term = Callable[..., Tensor | None]


class LossTerm:
    """A wrapper around ``training_step`` of one module; ``remove`` takes it off again.

    Args:
        pl_module: whose ``training_step`` returns a loss, or a mapping that holds one.
        term: from the arguments of a training step to what is added to its loss; None adds nothing.

    Raises:
        TypeError: in training, if a step returns neither.
    """

    def __init__(self, pl_module: LightningModule, term: Term) -> None:
        self.pl_module, self.term = pl_module, term
        self._exchanged = Exchanged()
        self._step = pl_module.training_step
        # whose signature counts, and what is looked at for being overridden
        self.__wrapped__ = inspect.unwrap(self._step)
        self._exchanged.exchange(pl_module, "training_step", self)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the step, then the term."""
        result = self._step(*args, **kwargs)
        if result is None:  # a batch that the model passes over
            return None
        loss = result.get("loss") if isinstance(result, dict) else result
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"training_step returned a {type(loss).__name__}: a loss, or a dict with the key 'loss', is needed"
            )
        more = self.term(*args, **kwargs)
        if more is None:
            return result
        return {**result, "loss": loss + more} if isinstance(result, dict) else loss + more

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """A copy of the module gets its own step: an average over the fit, say, is nobody's to train."""
        return deepcopy(self._step, memo)

    def remove(self) -> None:
        """Give the module its own step back."""
        self._exchanged.put_back()


class AddsToLoss(EffnnCallback):
    """A callback that adds a term to what ``training_step`` returns, from the start of a fit to its end."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._added: LossTerm | None = None

    def term(self, trainer: Trainer, pl_module: LightningModule) -> Term:
        """Return what is added, at the start of a fit."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wrap the module's training step."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._added is None:
            self._needs_automatic_optimization(pl_module, "adds to the loss that training_step returns")
            self._added = LossTerm(pl_module, self.term(trainer, pl_module))

    def _let_go(self) -> None:
        """Give the module its own training step back."""
        if self._added is not None:
            self._added.remove()
            self._added = None
