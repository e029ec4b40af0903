"""Burgers' equation with a viscosity of 0.01 / pi: a sine wave steepens into a shock.

effnn run pde/burgers --seeds 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_effnn import pde
from lightning_effnn.recipes.pde._references import NU, burgers
from lightning_effnn.recipes.pde._solve import solve


def problem() -> pde.Problem:
    """Return the problem."""
    return pde.Problem(
        pde.Box(x=(-1, 1), t=(0, 1)),
        residual=lambda u, c: u.t + u * u.x - NU * u.xx,
        conditions=[pde.Initial(lambda c: -torch.sin(math.pi * c.x)), pde.Dirichlet(0.0, on="x")],
        reference=lambda c: burgers(c.x, c.t),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("burgers", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
