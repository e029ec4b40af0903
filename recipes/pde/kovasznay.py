"""Flow behind a grid (Kovasznay's): the Navier-Stokes equations, two velocities and the pressure.

effnn run pde/kovasznay --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn import pde
from lightning_effnn.pde.names import Coordinates, FieldView
from lightning_effnn.recipes.pde._solve import solve

NU = 1 / 20
RATE = 1 / (2 * NU) - math.sqrt(1 / (4 * NU**2) + 4 * math.pi**2)


def solution(c: Coordinates) -> tuple[Tensor, Tensor, Tensor]:
    """Both velocities and the pressure. Source: Kovasznay (1948), "Laminar flow behind a two-dimensional grid"."""
    u = 1 - torch.exp(RATE * c.x) * torch.cos(2 * math.pi * c.y)
    v = RATE / (2 * math.pi) * torch.exp(RATE * c.x) * torch.sin(2 * math.pi * c.y)
    return u, v, 0.5 * (1 - torch.exp(2 * RATE * c.x))


def navier_stokes(u: FieldView, v: FieldView, p: FieldView, c: Coordinates) -> list[Tensor]:
    """Two balances of momentum, and that of mass."""
    return [
        u * u.x + v * u.y + p.x - NU * pde.laplacian(u),
        u * v.x + v * v.y + p.y - NU * pde.laplacian(v),
        pde.div(u, v),
    ]


def problem() -> pde.Problem:
    """Return the problem: that of DeepXDE's own example."""
    return pde.Problem(
        pde.Box(x=(-0.5, 1), y=(-0.5, 1.5)),
        residual=navier_stokes,
        conditions=[
            pde.Dirichlet(lambda c: solution(c)[0], of="u"),
            pde.Dirichlet(lambda c: solution(c)[1], of="v"),
            pde.Dirichlet(lambda c: solution(c)[2], on="x=1", of="p"),
        ],
        fields=("u", "v", "p"),
        reference=solution,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("kovasznay", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
