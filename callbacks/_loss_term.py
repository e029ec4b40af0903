"""Adding a term to a user's loss, in the one place from which autocast, scaling, accumulation and DDP come right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor

_WRAPPED = "training_step"


class LossTerm:
    """A wrapper around ``training_step`` of one module; ``remove`` takes it off again.

    Args:
        pl_module: whose ``training_step`` returns a loss, or a mapping that holds one.
        term: from the arguments of a training step to what is added to its loss; None adds nothing.

    Raises:
        TypeError: in training, if a step returns neither.
    """

    def __init__(self, pl_module: Any, term: Callable[..., Tensor | None]) -> None:
        self.pl_module, self.term = pl_module, term
        self._own = pl_module.__dict__.get(_WRAPPED)
        self._step = pl_module.training_step
        self.__wrapped__ = inspect.unwrap(
            self._step
        )  # whose signature counts, and what is looked at for being overridden
        pl_module.__dict__[_WRAPPED] = self

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
        if self.pl_module.__dict__.get(_WRAPPED) is self:
            if self._own is None:
                del self.pl_module.__dict__[_WRAPPED]
            else:
                self.pl_module.__dict__[_WRAPPED] = self._own
