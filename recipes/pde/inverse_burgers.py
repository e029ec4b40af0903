"""Find the viscosity of Burgers' equation from 500 measurements with 1 % of noise.

effnn run pde/inverse_burgers --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_effnn import pde
from lightning_effnn.recipes.pde._references import NU, burgers
from lightning_effnn.recipes.pde._solve import solve

MEASUREMENTS = 500
NOISE = 0.01


def problem(seed: int = 0) -> pde.Problem:
    """Return the problem, which starts from a viscosity six times too high (0.02 against 0.00318)."""
    box = pde.Box(x=(-1, 1), t=(0, 1))
    generator = torch.Generator().manual_seed(seed)
    points = box.interior(torch.rand(MEASUREMENTS, 2, generator=generator, dtype=torch.float64))
    clean = burgers(points[:, 0], points[:, 1])
    noise = torch.randn(MEASUREMENTS, generator=generator, dtype=torch.float64)
    return pde.Problem(
        box,
        residual=lambda u, c: u.t + u * u.x - c.nu * u.xx,
        conditions=[
            pde.Initial(lambda c: -torch.sin(math.pi * c.x)),
            pde.Dirichlet(0.0, on="x"),
            pde.Data(points, clean + NOISE * clean.std() * noise),
        ],
        unknowns={"nu": 0.02},
        reference=lambda c: burgers(c.x, c.t, NU),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("inverse_burgers", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
