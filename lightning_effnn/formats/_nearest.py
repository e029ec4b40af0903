"""The nearest of a few levels: by a table over cells of equal width, by a search where that would be large, or by the
leading bits of a number where levels are powers of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from lightning_effnn.formats._carrier import Carrier, carried

_MAX_CELLS = 4096  # a larger table costs more to build than the search it saves


@dataclass(frozen=True, eq=False)
class Cells:
    """What to answer for a number, by the cell it lies in.

    Attributes:
        answers: one a cell, and one for NaN.
        first, last: places of the first and the last cell; what lies beyond belongs to them.
        per_unit: cells a unit of the input.
    """

    answers: Tensor
    first: float
    last: float
    per_unit: float | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the answers for ``x``, of its shape and of the table's dtype."""
        place = (carried(x) * self.per_unit).floor_().clamp_(self.first, self.last)
        place = place.nan_to_num_(nan=self.last + 1.0).sub_(self.first).to(torch.int32)
        return self.answers.index_select(0, place.flatten()).reshape(x.shape)

    def scaled(self, scale: Tensor) -> Cells:
        """The same for levels times a positive ``scale``."""
        return replace(self, answers=self.answers * scale, per_unit=self.per_unit / scale)


@dataclass(frozen=True, eq=False)
class Search:
    """What to answer for a number, by the two levels it lies between.

    Attributes:
        answers: one a level, and one for NaN.
        middles: between the levels in rising order, float64, before scaling.
        per_unit: one over the scale.
    """

    answers: Tensor
    middles: Tensor
    per_unit: float | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the answers for ``x``, of its shape and of the table's dtype."""
        x = carried(x)
        place = torch.bucketize(x * self.per_unit, self.middles.to(x), right=True)
        place = place.masked_fill(x.isnan(), len(self.middles) + 1)
        return self.answers.index_select(0, place.flatten()).reshape(x.shape)

    def scaled(self, scale: Tensor) -> Search:
        """The same for levels times a positive ``scale``."""
        return replace(self, answers=self.answers * scale, per_unit=self.per_unit / scale)


@dataclass(frozen=True, eq=False)
class Keys:
    """What to answer for a number, by its sign, its exponent and the first bit of its mantissa.

    Attributes:
        answers: one a key, in the order of keys as signed integers.
        carrier: of the numbers.
    """

    answers: Tensor
    carrier: Carrier

    @staticmethod
    def representatives(carrier: Carrier, device: torch.device) -> Tensor:
        """The number of least magnitude with each key."""
        half = 1 << (carrier.exponent_bits + 1)
        return torch.arange(-half, half, dtype=carrier.integer, device=device).bitwise_left_shift(
            carrier.mantissa_bits - 1
        ).view(carrier.dtype)  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        """Return the answers for ``x``, of its shape and of the table's dtype."""
        bits = x.to(self.carrier.dtype).view(self.carrier.integer)
        place = bits.bitwise_right_shift(self.carrier.mantissa_bits - 1).add_(self.answers.numel() // 2)
        return self.answers.index_select(0, place.flatten()).reshape(x.shape)


Rounder = Cells | Search | Keys
"""What gives the nearest levels of a tensor, its table made once."""


def find_nearest(levels: Sequence[float], cell: float, scale: float, answers: Tensor) -> Cells | Search:
    """Return what answers for the nearest of ``levels``; what is midway belongs to the larger one.

    Args:
        levels: in rising order, before scaling.
        cell: what the middles between levels, and the levels, are multiples of.
        scale: of the levels.
        answers: one a level, and one for NaN.
    """
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    first, last = levels[0] / cell - 1, levels[-1] / cell
    cells = int(last - first) + 1
    if cells > _MAX_CELLS:
        return Search(answers, torch.tensor(middles, dtype=torch.float64, device=answers.device), 1.0 / scale)
    edges = [first, *(middle / cell for middle in middles), last + 1, last + 2]
    widths = torch.tensor([int(b - a) for a, b in pairwise(edges)], device=answers.device)
    return Cells(answers.repeat_interleave(widths, output_size=cells + 1), first, last, 1.0 / (scale * cell))
