"""Partial differential equations, solved by small networks on the coordinate encodings of radiance fields.

>>> import math, torch
>>> from lightning_effnn import pde
>>> burgers = pde.Problem(
...     domain=pde.Box(x=(-1, 1), t=(0, 1)),
...     residual=lambda u, c: u.t + u * u.x - 0.01 / math.pi * u.xx,
...     conditions=[pde.Initial(lambda c: -torch.sin(math.pi * c.x)), pde.Dirichlet(0.0, on="x")],
... )
>>> burgers.order
2
"""

from lightning_effnn.pde.builtin import BuiltIn
from lightning_effnn.pde.conditions import Data, Dirichlet, Initial, Neumann, Periodic, Robin
from lightning_effnn.pde.derivatives import Derivatives, nested, taylor
from lightning_effnn.pde.encodings import (
    Compose,
    Encoding,
    FactoredGrid,
    FourierFeatures,
    MultiresolutionGrid,
    PositionalEncoding,
)
from lightning_effnn.pde.field import Field, encode
from lightning_effnn.pde.geometry import Box, Disc, Domain, Polygon
from lightning_effnn.pde.indices import Indices, Laplacian
from lightning_effnn.pde.levenberg_marquardt import LevenbergMarquardt
from lightning_effnn.pde.names import div, grad, laplacian
from lightning_effnn.pde.plots import plot_solution
from lightning_effnn.pde.problem import Problem
from lightning_effnn.pde.residuals import Residuals, Unknowns
from lightning_effnn.pde.sampling import Sampler

__all__ = [
    "Box",
    "BuiltIn",
    "Compose",
    "Data",
    "Derivatives",
    "Dirichlet",
    "Disc",
    "Domain",
    "Encoding",
    "FactoredGrid",
    "Field",
    "FourierFeatures",
    "Indices",
    "Initial",
    "Laplacian",
    "LevenbergMarquardt",
    "MultiresolutionGrid",
    "Neumann",
    "Periodic",
    "Polygon",
    "PositionalEncoding",
    "Problem",
    "Residuals",
    "Robin",
    "Sampler",
    "Unknowns",
    "div",
    "encode",
    "grad",
    "laplacian",
    "nested",
    "plot_solution",
    "taylor",
]
