"""Poisson's equation on an L, at whose inner corner the slope is infinite.

effnn run pde/poisson_lshape --seeds 3
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_effnn import pde
from lightning_effnn.recipes.pde._references import lshape
from lightning_effnn.recipes.pde._solve import solve


def problem() -> pde.Problem:
    """Return the problem: that of DeepXDE's own example."""
    return pde.Problem(
        pde.Polygon([(0, 0), (1, 0), (1, -1), (-1, -1), (-1, 1), (0, 1)]),
        residual=lambda u, c: pde.laplacian(u) + 1,
        conditions=[pde.Dirichlet(0.0)],
        reference=lambda c: lshape(c.x, c.y),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Solve, compare, draw."""
    return solve("poisson_lshape", __doc__, problem, argv)


if __name__ == "__main__":
    raise SystemExit(main())
