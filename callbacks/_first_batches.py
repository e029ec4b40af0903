"""Looking at what multiplies in the first batches of a fit, as they run; what goes wrong never reaches the run."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_effnn.quantization import Selection, WeightFinder, forget_weights
from lightning_effnn.quantization.weights import noted_uses, restore_uses_

LOOKS = 8
"""Batches looked at, at most, while there are matrices that train and took no part: of networks that take turns."""


class FirstBatches:
    """Finds the weights of a model that trains.

    Args:
        owner: who says what is taken.
        selection: of the model's weights.
    """

    def __init__(self, owner: str, selection: Selection) -> None:
        self.owner, self.selection = owner, selection
        self._finder = WeightFinder(selection.model)
        self._left = LOOKS

    def open(self) -> None:
        """Look at the batch that runs from here on; after :meth:`pause`, go on."""
        if self._left:
            self._finder.open()

    def pause(self) -> None:
        """Don't look while a backward pass runs; nor at the same time as others who look end then."""
        self._finder.pause()

    def close(self, trainer: Trainer) -> bool:
        """End the look; whether this batch was looked at."""
        if not self._left:
            return False
        self._finder.close()
        error = share(trainer, self.selection.model, self._finder.error)
        self._left = 0 if error or not self.selection.unseen else self._left - 1
        if not self._left:
            tell(self.owner, self.selection, error)
        return True

    def end(self) -> None:
        """The fit is over."""
        self._finder.abandon()
        if 0 < self._left < LOOKS:
            tell(self.owner, self.selection)
        self._left = 0


def share(trainer: Trainer, model: nn.Module, error: Exception | None) -> str:
    """Let all processes know what the first has seen: each has a batch of its own, and may have sent it elsewhere.

    Args:
        trainer: of the fit.
        model: that trains.
        error: why this process could not look, if it could not.

    Returns:
        Why the first could not look; empty if it could.
    """
    reason = "" if error is None else f"{type(error).__name__}: {error}"
    if trainer.world_size > 1:
        noted, reason = trainer.strategy.broadcast((noted_uses(model), reason))
        forget_weights(model)
        restore_uses_(model, noted)
    return reason


def tell(owner: str, selection: Selection, error: str = "") -> None:
    """Say what is taken and what is left out, as a warning where that is much.

    Args:
        owner: who says so.
        selection: what is taken.
        error: why no batch could be looked at, if none could.
    """
    if error:
        rank_zero_warn(f"{owner} knows weights by their classes only, for the batch could not be looked at: {error}")
    rank_zero_info(f"{owner} takes {', '.join(site.name for site in selection.sites)}")
    (rank_zero_info if selection.is_enough else rank_zero_warn)(f"{owner} takes {selection}")
