"""How DeepXDE sets up each problem: numbers of points, network and iterations of its own examples.

Source: the examples of DeepXDE 1.15 (``examples/pinn_forward``: Burgers, heat, Allen_Cahn, Kovasznay_flow,
Poisson_Lshape, Helmholtz_Dirichlet_2d); where there is none, four layers of 50 with boundaries weighed by 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import deepxde as dde
import numpy as np
import torch

H = dde.grad.hessian
J = dde.grad.jacobian


@dataclass
class Settings:
    """What a model is made of."""

    data: Any
    net: Any
    iterations: int
    weights: Sequence[float] | None = None
    phase: str = "adam"


def _net(widths: Sequence[int], activation: str = "tanh") -> Any:
    return dde.nn.FNN(list(widths), activation, "Glorot normal" if activation == "tanh" else "Glorot uniform")


def _time(low: float, high: float) -> tuple[Any, Any]:
    space = dde.geometry.Interval(low, high)
    return space, dde.geometry.GeometryXTime(space, dde.geometry.TimeDomain(0, 1))


def burgers() -> Settings:
    """Its example: conditions are learned."""
    _, where = _time(-1, 1)
    conditions = [dde.icbc.DirichletBC(where, lambda x: 0, lambda _, on: on),
                  dde.icbc.IC(where, lambda x: -np.sin(np.pi * x[:, 0:1]), lambda _, on: on)]  # fmt: skip
    data = dde.data.TimePDE(
        where, lambda x, u: J(u, x, i=0, j=1) + u * J(u, x, i=0, j=0) - 0.01 / math.pi * H(u, x, i=0, j=0),
        conditions, num_domain=2540, num_boundary=80, num_initial=160,
    )  # fmt: skip
    return Settings(data, _net([2, 20, 20, 20, 1]), 15_000)


def heat() -> Settings:
    """Its example."""
    _, where = _time(0, 1)
    conditions = [dde.icbc.DirichletBC(where, lambda x: 0, lambda _, on: on),
                  dde.icbc.IC(where, lambda x: np.sin(np.pi * x[:, 0:1]), lambda _, on: on)]  # fmt: skip
    data = dde.data.TimePDE(where, lambda x, u: J(u, x, i=0, j=1) - 0.4 * H(u, x, i=0, j=0), conditions,
                            num_domain=2540, num_boundary=80, num_initial=160)  # fmt: skip
    return Settings(data, _net([2, 20, 20, 20, 1]), 20_000)


def allen_cahn() -> Settings:
    """Its example: conditions are built in."""
    _, where = _time(-1, 1)
    data = dde.data.TimePDE(
        where, lambda x, u: J(u, x, i=0, j=1) - 0.001 * H(u, x, i=0, j=0) - 5 * (u - u**3), [],
        num_domain=8000, num_boundary=400, num_initial=800,
    )  # fmt: skip
    net = _net([2, 20, 20, 20, 1])
    net.apply_output_transform(
        lambda x, u: x[:, 0:1] ** 2 * torch.cos(math.pi * x[:, 0:1]) + x[:, 1:2] * (1 - x[:, 0:1] ** 2) * u
    )
    return Settings(data, net, 40_000)


def kovasznay() -> Settings:
    """Its example."""
    from lightning_effnn.recipes.pde.kovasznay import NU, RATE

    where = dde.geometry.Rectangle([-0.5, -0.5], [1, 1.5])

    def equations(x: Any, f: Any) -> list[Any]:
        u, v = f[:, 0:1], f[:, 1:2]
        return [
            u * J(f, x, i=0, j=0) + v * J(f, x, i=0, j=1) + J(f, x, i=2, j=0)
            - NU * (H(f, x, component=0, i=0, j=0) + H(f, x, component=0, i=1, j=1)),
            u * J(f, x, i=1, j=0) + v * J(f, x, i=1, j=1) + J(f, x, i=2, j=1)
            - NU * (H(f, x, component=1, i=0, j=0) + H(f, x, component=1, i=1, j=1)),
            J(f, x, i=0, j=0) + J(f, x, i=1, j=1),
        ]  # fmt: skip

    def velocity(x: Any) -> Any:
        return 1 - np.exp(RATE * x[:, 0:1]) * np.cos(2 * np.pi * x[:, 1:2])

    def across(x: Any) -> Any:
        return RATE / (2 * np.pi) * np.exp(RATE * x[:, 0:1]) * np.sin(2 * np.pi * x[:, 1:2])

    def pressure(x: Any) -> Any:
        return 0.5 * (1 - np.exp(2 * RATE * x[:, 0:1]))

    conditions = [
        dde.icbc.DirichletBC(where, velocity, lambda _, on: on, component=0),
        dde.icbc.DirichletBC(where, across, lambda _, on: on, component=1),
        dde.icbc.DirichletBC(where, pressure, lambda x, on: on and np.isclose(x[0], 1), component=2),
    ]
    data = dde.data.PDE(where, equations, conditions, num_domain=2601, num_boundary=400)
    return Settings(data, _net([2, 50, 50, 50, 50, 3]), 30_000)


def poisson_lshape() -> Settings:
    """Its example."""
    where = dde.geometry.Polygon([[0, 0], [1, 0], [1, -1], [-1, -1], [-1, 1], [0, 1]])
    condition = dde.icbc.DirichletBC(where, lambda x: 0, lambda _, on: on)
    data = dde.data.PDE(where, lambda x, u: -H(u, x, i=0, j=0) - H(u, x, i=1, j=1) - 1, condition,
                        num_domain=1200, num_boundary=120)  # fmt: skip
    net = _net([2, 50, 50, 50, 50, 1])
    net.apply_feature_transform(lambda x: x.float())  # points of a polygon come in double precision
    return Settings(data, net, 50_000)


def helmholtz_waves() -> Settings:
    """Its example: the boundary is built in, and layers of 150 have sines."""
    k = 4 * math.pi
    where = dde.geometry.Rectangle([0, 0], [1, 1])

    def equation(x: Any, u: Any) -> Any:
        source = k**2 * torch.sin(k * x[:, 0:1]) * torch.sin(k * x[:, 1:2])
        return -H(u, x, i=0, j=0) - H(u, x, i=1, j=1) - k**2 * u - source

    data = dde.data.PDE(where, equation, [], num_domain=20**2, num_boundary=4 * 20)
    net = _net([2, 150, 150, 150, 1], "sin")
    net.apply_output_transform(lambda x, u: x[:, 0:1] * (1 - x[:, 0:1]) * x[:, 1:2] * (1 - x[:, 1:2]) * u)
    return Settings(data, net, 5_000)


def _standard(where: Any, equation: Callable[[Any, Any], Any], width: int, iterations: int) -> Settings:
    condition = dde.icbc.DirichletBC(where, lambda x: 0, lambda _, on: on)
    data = dde.data.PDE(where, equation, condition, num_domain=2500, num_boundary=400)
    dim = where.dim
    return Settings(data, _net([dim, *[width] * 4, 1]), iterations, [1, 100])


def helmholtz() -> Settings:
    """No example: its standard settings."""

    def equation(x: Any, u: Any) -> Any:
        wave = torch.sin(math.pi * x[:, 0:1]) * torch.sin(4 * math.pi * x[:, 1:2])
        return H(u, x, i=0, j=0) + H(u, x, i=1, j=1) + u - (1 - 17 * math.pi**2) * wave

    return _standard(dde.geometry.Rectangle([-1, -1], [1, 1]), equation, 50, 15_000)


def poisson() -> Settings:
    """No example: its standard settings."""

    def equation(x: Any, u: Any) -> Any:
        source = sum(
            torch.sin(k * math.pi * x[:, 0:1]) * torch.sin(k * math.pi * x[:, 1:2]) * 2 * math.pi**2 * k
            for k in (1, 2, 4, 8)
        )
        return H(u, x, i=0, j=0) + H(u, x, i=1, j=1) + source

    return _standard(dde.geometry.Rectangle([0, 0], [1, 1]), equation, 50, 15_000)


def helmholtz_3d() -> Settings:
    """No example: its standard settings."""
    k = 2 * math.pi

    def equation(x: Any, u: Any) -> Any:
        wave = torch.sin(k * x[:, 0:1]) * torch.sin(k * x[:, 1:2]) * torch.sin(k * x[:, 2:3])
        return -H(u, x, i=0, j=0) - H(u, x, i=1, j=1) - H(u, x, i=2, j=2) - k**2 * u - 2 * k**2 * wave

    return _standard(dde.geometry.Cuboid([0, 0, 0], [1, 1, 1]), equation, 50, 15_000)


_ALL = (burgers, heat, allen_cahn, kovasznay, poisson_lshape, helmholtz_waves, helmholtz, poisson, helmholtz_3d)
SETTINGS: dict[str, Callable[[], Settings]] = {function.__name__: function for function in _ALL}
