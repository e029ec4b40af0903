"""Helmholtz's equation on a square, with two whole waves each way and a wave number to match.

effnn run pde/helmholtz_waves --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn import pde
from lightning_effnn.pde.names import Coordinates
from lightning_effnn.recipes.pde._solve import solve

K = 4 * math.pi


def solution(c: Coordinates) -> Tensor:
    """Manufactured: the problem of DeepXDE's own example."""
    return torch.sin(K * c.x) * torch.sin(K * c.y)


def problem() -> pde.Problem:
    """Return the problem."""
    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1)),
        residual=lambda u, c: pde.laplacian(u) + K**2 * u + K**2 * solution(c),
        conditions=[pde.Dirichlet(0.0)],
        reference=solution,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("helmholtz_waves", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
