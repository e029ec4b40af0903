"""Poisson's equation on a square, with one, two, four and eight half waves at once.

effnn run pde/poisson
effnn run pde/poisson --plain          # without the encoding
effnn run pde/poisson --optimizer adam --epochs 500
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn import pde
from lightning_effnn.pde.names import Coordinates
from lightning_effnn.recipes.pde._solve import solve

WAVES = (1, 2, 4, 8)


def solution(c: Coordinates) -> Tensor:
    """Manufactured."""
    return torch.stack([torch.sin(k * math.pi * c.x) * torch.sin(k * math.pi * c.y) / k for k in WAVES]).sum(0)


def source(c: Coordinates) -> Tensor:
    """Minus its Laplacian."""
    waves = (torch.sin(k * math.pi * c.x) * torch.sin(k * math.pi * c.y) * 2 * math.pi**2 * k for k in WAVES)
    return torch.stack(list(waves)).sum(0)


def problem() -> pde.Problem:
    """Return the problem."""
    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1)),
        residual=lambda u, c: pde.laplacian(u) + source(c),
        conditions=[pde.Dirichlet(0.0)],
        reference=solution,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("poisson", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
