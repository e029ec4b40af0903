"""Which points are drawn."""

import numpy as np
import pytest

from lightning_effnn import pde
from lightning_effnn.pde.sampling import POOL, Sampler


def first_coordinates(power, residual, points=4000):
    """Of the points of the second draw, with a residual that no field changes."""
    problem = pde.Problem(pde.Box(x=(0, 1), y=(0, 1)), lambda u, c: 0 * u + residual(c.x))
    field = pde.Field(hidden=(4,))
    field.bind((0, 0), (1, 1), outputs=1)
    residuals = pde.Residuals(problem, field)
    sampler = Sampler(points, adaptive=power)
    sampler.draw(residuals)
    (block,) = sampler.draw(residuals)
    assert len(block.points) == points
    return block.points[:, 0].numpy()


def expected_share(power, residual, low):
    """The share of points above ``low`` among 1 of ``POOL`` candidates, drawn without replacement.

    A candidate of weight w is drawn with the probability 1 - exp(-w t), for the t that gives as many as are wanted.
    """
    x = np.linspace(0, 1, 20_001)
    size = residual(x) ** power
    weight = size / size.mean() + 1
    early, late = 0.0, 10.0
    for _ in range(60):
        t = (early + late) / 2
        early, late = (t, late) if (1 - np.exp(-weight * t)).mean() < 1 / POOL else (early, t)
    drawn = 1 - np.exp(-weight * t)
    return drawn[x > low].sum() / drawn.sum()


@pytest.mark.parametrize("power", [0, 1, 2])
def test_half_of_the_points_gather_by_the_power_of_the_residual(power):
    shares = [expected_share(other, lambda x: x, 0.6) for other in (0, 1, 2)]
    assert shares == pytest.approx([0.4, 0.504, 0.564], abs=1e-3)  # at least 0.06 apart
    found = (first_coordinates(power, lambda x: x) > 0.6).mean()
    assert found == pytest.approx(shares[power], abs=0.025)  # three standard deviations of 4000 draws
