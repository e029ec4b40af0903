"""Adding a term to a user's loss, in the one place from which autocast, scaling, accumulation and DDP come right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import Tensor

from lightning_effnn._exchanged import Exchanged
from lightning_effnn.callbacks._refusals import check_whole_weights
from lightning_effnn.callbacks._reporting import log_parameters

Term = Callable[..., Tensor | None]
_WRAPPED = "training_step"


class LossTerm:
    """A wrapper around ``training_step`` of one module; ``remove`` takes it off again.

    Args:
        pl_module: whose ``training_step`` returns a loss, or a mapping that holds one.
        term: from the arguments of a training step to what is added to its loss; None adds nothing.

    Raises:
        TypeError: in training, if a step returns neither.
    """

    def __init__(self, pl_module: Any, term: Term) -> None:
        self.pl_module, self.term = pl_module, term
        self._exchanged = Exchanged()
        self._step = pl_module.training_step
        # whose signature counts, and what is looked at for being overridden
        self.__wrapped__ = inspect.unwrap(self._step)
        self._exchanged.exchange(pl_module, _WRAPPED, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module gets its own step: an average over the fit, say, is nobody's to train."""
        return deepcopy(self._step, memo)

    def remove(self) -> None:
        """Give the module its own step back."""
        self._exchanged.put_back()


class AddsToLoss(Callback):
    """A callback that adds a term to what ``training_step`` returns, from the start of a fit to its end."""

    prefix: str
    """First part of the logged keys; callbacks of one class with different ones go together."""
    _added: LossTerm | None = None

    def term(self, trainer: Any, pl_module: Any) -> Term:
        """Return what is added, at the start of a fit."""
        raise NotImplementedError

    @property
    def state_key(self) -> str:
        """Fixed by the prefix."""
        return f"{type(self).__name__}[{self.prefix}]"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Wrap the module's training step."""
        if stage != "fit" or self._added is not None:
            return
        check_whole_weights(trainer, self)
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"{type(self).__name__} adds to the loss that training_step returns: it needs automatic_optimization"
            )
        self._added = LossTerm(pl_module, self.term(trainer, pl_module))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Log the parameters."""
        log_parameters(trainer, self)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its own training step back."""
        if stage == "fit":
            self._remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give it back: after an exception or Ctrl-C there is no teardown."""
        self._remove()

    def _remove(self) -> None:
        if self._added is not None:
            self._added.remove()
            self._added = None
