"""The way of a network from dense to compressed, in steps that a training takes one after another."""

from __future__ import annotations

import math

from lightning_effnn.compression.projector import Projector
from lightning_effnn.compression.pruning import check_sparsity, cubic_sparsity

FRACTIONS = (0.25, 0.5, 0.75, 0.875, 1.0)
"""Shares of the weights that are rounded, one after another (arXiv 1903.03046, section 5)."""
PRUNING_STEPS = 100
"""How often masks are chosen anew while a network is pruned."""
STAGES = ("dense", "pruning", "quantising", "final")
"""What :attr:`Stages.stage` counts."""


class Stages:
    """How far a network has come: pruned along a cubic curve, then rounded share by share.

    Args:
        sparsity: share of zeros to reach, in [0, 1); 0 leaves out pruning.
        quantizes: whether weights are rounded.

    Attributes:
        pruned: last of the :data:`PRUNING_STEPS` that was taken; -1 before the first.
        rounded: last of the :data:`FRACTIONS`, likewise.

    Raises:
        ValueError: a sparsity out of range.

    >>> from torch import nn
    >>> projector, stages = Projector(nn.Linear(16, 16)), Stages(sparsity=0.5)
    >>> stages.prune(projector, 0.5)
    >>> STAGES[stages.stage], round(projector.sparsity, 2)
    ('pruning', 0.44)
    >>> stages.complete(projector), STAGES[stages.stage], round(projector.sparsity, 2)
    (True, 'final', 0.5)
    """

    def __init__(self, sparsity: float, quantizes: bool = True) -> None:
        check_sparsity(sparsity)
        self.sparsity, self.quantizes = sparsity, quantizes
        self.pruned = self.rounded = -1

    @property
    def stage(self) -> int:
        """Index into :data:`STAGES`; from the last on, the network is one that could be shipped."""
        is_pruned = not self.sparsity or self.pruned >= PRUNING_STEPS
        is_rounded = not self.quantizes or self.rounded >= len(FRACTIONS) - 1
        if is_pruned and is_rounded:
            return 3
        return 2 if self.rounded >= 0 else 1 if self.pruned >= 0 else 0

    def prune(self, projector: Projector, progress: float) -> None:
        """Choose the masks anew, if that is due; at the end they stay as they are.

        Args:
            projector: of the network.
            progress: share of the pruning that should be done; below 0 before it begins, above 1 when it is over.
        """
        step = min(math.floor(progress * PRUNING_STEPS), PRUNING_STEPS)
        # weights that are not finite are the training's own error, or the next step's
        if self.sparsity and step > self.pruned and projector.finite:
            self.pruned = step
            projector.prune(cubic_sparsity(self.sparsity, step / PRUNING_STEPS))
            if step >= PRUNING_STEPS:
                projector.settle()

    def quantize(self, projector: Projector, progress: float) -> None:
        """Round the next share of the weights, if that is due.

        Args:
            projector: of the network.
            progress: share of the rounding that should be done; likewise.
        """
        step = min(math.floor(progress * len(FRACTIONS)), len(FRACTIONS) - 1)
        if self.quantizes and step > self.rounded and projector.finite:
            self.rounded = step
            projector.quantize(FRACTIONS[step])

    def complete(self, projector: Projector) -> bool:
        """Do at once what is left, and project whatever stands in the model; False if that changed nothing.

        Args:
            projector: of the network.

        Raises:
            ValueError: a weight is not finite.
        """
        stage = self.stage
        self.prune(projector, 1.0)
        self.quantize(projector, 1.0)
        return projector.finish() or stage < 3
