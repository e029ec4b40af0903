"""Helmholtz's equation on a square, with one half wave to the right and four upwards on each side of the middle.

effnn run pde/helmholtz --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn import pde
from lightning_effnn.pde.names import Coordinates
from lightning_effnn.recipes.pde._solve import solve


def solution(c: Coordinates) -> Tensor:
    """Manufactured: the (1, 4) case of Wang et al. (2021), arXiv 2001.04536, section 2."""
    return torch.sin(math.pi * c.x) * torch.sin(4 * math.pi * c.y)


def problem() -> pde.Problem:
    """Return the problem."""
    return pde.Problem(
        pde.Box(x=(-1, 1), y=(-1, 1)),
        residual=lambda u, c: pde.laplacian(u) + u - (1 - 17 * math.pi**2) * solution(c),
        conditions=[pde.Dirichlet(0.0)],
        reference=solution,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("helmholtz", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
