"""Allen and Cahn's equation: two phases part, and what was smooth becomes steps.

effnn run pde/allen_cahn --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_effnn import pde
from lightning_effnn.recipes.pde._references import allen_cahn
from lightning_effnn.recipes.pde._solve import solve


def problem() -> pde.Problem:
    """Return the problem: that of DeepXDE's own example."""
    return pde.Problem(
        pde.Box(x=(-1, 1), t=(0, 1)),
        residual=lambda u, c: u.t - 0.001 * u.xx - 5 * (u - u**3),
        conditions=[pde.Initial(lambda c: c.x**2 * torch.cos(math.pi * c.x)), pde.Dirichlet(-1.0, on="x")],
        reference=lambda c: allen_cahn(c.x, c.t),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("allen_cahn", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
