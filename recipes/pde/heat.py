"""The heat equation on a rod whose ends are kept cold.

effnn run pde/heat --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_effnn import pde
from lightning_effnn.recipes.pde._solve import solve

A = 0.4


def problem() -> pde.Problem:
    """Return the problem: that of DeepXDE's own example."""
    return pde.Problem(
        pde.Box(x=(0, 1), t=(0, 1)),
        residual=lambda u, c: u.t - A * u.xx,
        conditions=[pde.Initial(lambda c: torch.sin(math.pi * c.x)), pde.Dirichlet(0.0, on="x")],
        reference=lambda c: torch.exp(-A * math.pi**2 * c.t) * torch.sin(math.pi * c.x),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("heat", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
