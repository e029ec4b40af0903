"""Looking at what multiplies in the first batches of a fit, as they run; what goes wrong never reaches the run."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_effnn.quantization import Selection, WeightFinder

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

    def close(self) -> bool:
        """End the look; whether this batch was looked at."""
        if not self._left:
            return False
        self._finder.close()
        self._left = 0 if self._finder.error is not None or not self.selection.unseen else self._left - 1
        if not self._left:
            tell(self.owner, self.selection, self._finder.error)
        return True

    def end(self) -> None:
        """The fit is over."""
        self._finder.abandon()
        if 0 < self._left < LOOKS:
            tell(self.owner, self.selection)
        self._left = 0


def tell(owner: str, selection: Selection, error: Exception | None = None) -> None:
    """Say what is taken and what is left out, as a warning where that is much.

    Args:
        owner: who says so.
        selection: what is taken.
        error: why no batch could be looked at, if none could.
    """
    if error is not None:
        rank_zero_warn(
            f"{owner} knows weights by their classes only, for the batch could not be looked at:"
            f" {type(error).__name__}: {error}"
        )
    rank_zero_info(f"{owner} takes {', '.join(site.name for site in selection.sites)}")
    (rank_zero_info if selection.is_enough else rank_zero_warn)(f"{owner} takes {selection}")
