"""Whether a given function has the derivatives that an equation asks for, or jumps, or bends too sharply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_effnn.pde.derivatives import nested
from lightning_effnn.pde.indices import Indices

_CELLS = 1024
_FINER, _TIMES = 32, 3
_LEAST = 1e-6
"""Of the largest value: what derivatives may leave unexplained over the smallest cell, 3e-8 of the line."""


@dataclass(frozen=True)
class Jump:
    """Where a derivative jumps.

    Attributes:
        order: of the derivative; 0 is the value.
        axis: it is taken along.
        at: coordinate on that axis.
    """

    order: int
    axis: int
    at: float


def find_jump(function: Callable[[Tensor], Tensor], start: Tensor, axis: int, high: float, order: int) -> Jump | None:
    """Look along lines for the lowest derivative that jumps.

    Over a cell a derivative changes by the integral of the next one, the better the smaller the cell; where it jumps,
    the difference stays. If that is so for most cells, autograd doesn't see through the function, and the value counts
    as jumping.

    Args:
        function: from points ``[N, d]`` to values ``[N]``.
        start: where the lines begin, ``[L, d]``.
        axis: they run along.
        high: coordinate at which they end.
        order: highest derivative that has to be continuous.

    Example:
        >>> lines = torch.zeros(1, 1, dtype=torch.float64)
        >>> find_jump(lambda x: x[:, 0].sin(), lines, 0, 3.0, 2) is None
        True
        >>> find_jump(lambda x: (x[:, 0] - 1).abs(), lines, 0, 3.0, 2)
        Jump(order=1, axis=0, at=1.0...)
    """
    dim = start.shape[1]
    indices = Indices.closure(dim, [tuple((order + 1) * (k == axis) for k in range(dim))])

    def cells(line: Tensor, low: float, high: float, count: int) -> tuple[Tensor, Tensor]:
        """Middles of cells, and the derivatives there, ``[order + 2, count]``."""
        middles = low + (high - low) * (torch.arange(count, dtype=line.dtype, device=line.device) + 0.5) / count
        points = line.repeat(count, 1)
        points[:, axis] = middles
        return middles, nested(lambda x: function(x)[:, None], points, indices)[:, :, 0].detach()

    for line in start:
        middles, derivatives = cells(line, float(line[axis]), high, _CELLS)
        rest = _unexplained(middles, derivatives[:2])
        if rest.sum() > 0.5 * derivatives[0].diff().abs().nan_to_num(0.0, 0.0, 0.0).sum() > 0:
            return Jump(0, axis, float(middles[int(rest.argmax())]))
        for k in range(order + 1):
            at, pair = middles, derivatives[k : k + 2]
            for _ in range(_TIMES):
                worst = int(_unexplained(at, pair).argmax())
                at, finer = cells(line, float(at[worst]), float(at[worst + 1]), _FINER)
                pair = finer[k : k + 2]
            left = _unexplained(at, pair)
            if left.max() > _LEAST * derivatives[k].nan_to_num(0.0, 0.0, 0.0).abs().max():
                return Jump(k, axis, float(at[int(left.argmax())]))
    return None


def _unexplained(at: Tensor, pair: Tensor) -> Tensor:
    """How far a derivative's differences are from the next one's integrals; 0 where they are not finite."""
    change, slope = pair[0].diff(), (pair[1, 1:] + pair[1, :-1]) / 2
    return (change - slope * at.diff()).abs().nan_to_num(0.0, 0.0, 0.0)
