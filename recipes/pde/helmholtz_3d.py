"""Helmholtz's equation in a cube, with one whole wave each way.

effnn run pde/helmholtz_3d --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn import pde
from lightning_effnn.pde.names import Coordinates
from lightning_effnn.recipes.pde._solve import solve

K = 2 * math.pi


def solution(c: Coordinates) -> Tensor:
    """Manufactured."""
    return torch.sin(K * c.x) * torch.sin(K * c.y) * torch.sin(K * c.z)


def problem() -> pde.Problem:
    """Return the problem."""
    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1), z=(0, 1)),
        residual=lambda u, c: pde.laplacian(u) + K**2 * u + 2 * K**2 * solution(c),
        conditions=[pde.Dirichlet(0.0)],
        reference=solution,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("helmholtz_3d", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
