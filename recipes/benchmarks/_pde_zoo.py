"""Equations with known solutions, of many kinds, none of which the defaults were chosen on.

The last three showed that a beginning with a kink must not be built in; nothing else was changed for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, cos, cosh, exp, sin

from lightning_effnn import pde
from lightning_effnn.pde.conditions import Condition
from lightning_effnn.pde.names import Coordinates, FieldView

PI = math.pi
C = Coordinates


def _part(fields: Callable[[C], Sequence[Tensor]], k: int, c: C) -> Tensor:
    return fields(c)[k]


def korteweg_de_vries() -> pde.Problem:
    """A soliton; third derivatives."""

    def u(c: C) -> Tensor:
        return 2 / cosh(c.x - 4 * c.t) ** 2

    def slope(c: C) -> Tensor:
        return -2 * u(c) * torch.tanh(c.x - 4 * c.t)

    return pde.Problem(
        pde.Box(x=(-5, 10), t=(0, 1)), lambda u, c: u.t + 6 * u * u.x + u.xxx,
        [pde.Initial(u), pde.Dirichlet(u, on="x"), pde.Neumann(slope, on="x=10")], reference=u,
    )  # fmt: skip


def klein_gordon() -> pde.Problem:
    """Nonlinear waves; second derivative by time, a speed at the beginning."""

    def u(c: C) -> Tensor:
        return c.x * cos(5 * PI * c.t) + (c.x * c.t) ** 3

    def force(c: C) -> Tensor:
        return -25 * PI**2 * c.x * cos(5 * PI * c.t) + 6 * c.t * c.x**3 - 6 * c.x * c.t**3 + u(c) ** 3

    return pde.Problem(
        pde.Box(x=(0, 1), t=(0, 1)), lambda u, c: u.tt - u.xx + u**3 - force(c),
        [pde.Initial(u), pde.Initial(0.0, of="u.t"), pde.Dirichlet(u, on="x")], reference=u,
    )  # fmt: skip


def plate() -> pde.Problem:
    """A plate that rests on its edge; fourth derivatives."""

    def u(c: C) -> Tensor:
        return sin(PI * c.x) * sin(PI * c.y)

    conditions = [pde.Dirichlet(0.0), pde.Dirichlet(0.0, on="x", of="u.xx"), pde.Dirichlet(0.0, on="y", of="u.yy")]
    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1)),
        lambda u, c: u.xxxx + 2 * u.xxyy + u.yyyy - 4 * PI**4 * sin(PI * c.x) * sin(PI * c.y),
        conditions, reference=u,
    )  # fmt: skip


def boundary_layer() -> pde.Problem:
    """Little diffusion against the wind; one coordinate."""

    def u(c: C) -> Tensor:
        return (exp((c.x - 1) / 0.02) - math.exp(-50)) / (1 - math.exp(-50))

    return pde.Problem(pde.Box(x=(0, 1)), lambda u, c: u.x - 0.02 * u.xx, [pde.Dirichlet(u)], reference=u)


def fisher() -> pde.Problem:
    """A front that runs."""

    def u(c: C) -> Tensor:
        return (1 + exp(c.x - 5 * c.t)) ** -2

    return pde.Problem(
        pde.Box(x=(-5, 10), t=(0, 2)), lambda u, c: u.t - u.xx - 6 * u * (1 - u),
        [pde.Initial(u), pde.Dirichlet(u, on="x")], reference=u,
    )  # fmt: skip


def sine_gordon() -> pde.Problem:
    """A breather, for a long time on a long line."""
    root = math.sqrt(2)

    def u(c: C) -> Tensor:
        return 4 * torch.atan(sin(c.t / root) / cosh(c.x / root))

    return pde.Problem(
        pde.Box(x=(-10, 10), t=(0, 8)), lambda u, c: u.tt - u.xx + sin(u.value),
        [pde.Initial(0.0), pde.Initial(lambda c: 4 / root / cosh(c.x / root), of="u.t"), pde.Dirichlet(u, on="x")],
        reference=u,
    )  # fmt: skip


def ring() -> pde.Problem:
    """Laplace's equation between two circles."""

    def u(c: C) -> Tensor:
        return torch.log(c.x**2 + c.y**2) + c.x**2 - c.y**2

    return pde.Problem(pde.Disc(2.0) - pde.Disc(1.0), lambda u, c: pde.laplacian(u), [pde.Dirichlet(u)], reference=u)


def heat_in_a_plate() -> pde.Problem:
    """Three coordinates, of which one is time."""

    def u(c: C) -> Tensor:
        slow, fast = exp(-0.2 * PI**2 * c.t), exp(-1.3 * PI**2 * c.t)
        return slow * sin(PI * c.x) * sin(PI * c.y) + fast * sin(2 * PI * c.x) * sin(3 * PI * c.y)

    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1), t=(0, 1)), lambda u, c: u.t - 0.1 * pde.laplacian(u),
        [pde.Initial(u), pde.Dirichlet(0.0)], reference=u,
    )  # fmt: skip


def oscillator() -> pde.Problem:
    """Ten swings, damped; time alone."""
    return pde.Problem(
        pde.Box(t=(0, 3)), lambda u, c: u.tt + u.t + 400.25 * u, [pde.Initial(1.0), pde.Initial(-0.5, of="u.t")],
        reference=lambda c: exp(-c.t / 2) * cos(20 * c.t),
    )  # fmt: skip


def schroedinger() -> pde.Problem:
    """A bright soliton that moves; two fields."""

    def waves(c: C) -> tuple[Tensor, Tensor]:
        return cos(c.x) / cosh(c.x - c.t), sin(c.x) / cosh(c.x - c.t)

    def equations(a: FieldView, b: FieldView, c: C) -> list[Tensor]:
        size = a**2 + b**2
        return [a.t + 0.5 * b.xx + size * b, -b.t + 0.5 * a.xx + size * a]

    conditions: list[Condition] = []
    for k, name in enumerate("ab"):
        value = functools.partial(_part, waves, k)
        conditions += [pde.Initial(value, of=name), pde.Dirichlet(value, on="x", of=name)]
    return pde.Problem(pde.Box(x=(-6, 8), t=(0, 2)), equations, conditions, ("a", "b"), reference=waves)


def growth() -> pde.Problem:
    """A reaction without diffusion, periodic: known to mislead networks on plain coordinates."""

    def start(c: C) -> Tensor:
        return 0.02 + 0.9 * ((1 - cos(c.x)) / 2) ** 4

    def u(c: C) -> Tensor:
        grown = start(c) * exp(5 * c.t)
        return grown / (grown + 1 - start(c))

    return pde.Problem(
        pde.Box(x=(0, 2 * PI), t=(0, 1)), lambda u, c: u.t - 5 * u * (1 - u), [pde.Initial(start), pde.Periodic("x")],
        reference=u,
    )  # fmt: skip


def convection() -> pde.Problem:
    """Thirty lengths a unit of time, periodic: known for residuals that are small where the solution is wrong."""
    return pde.Problem(
        pde.Box(x=(0, 2 * PI), t=(0, 1)), lambda u, c: u.t + 30 * u.x,
        [pde.Initial(lambda c: sin(c.x)), pde.Periodic("x")], reference=lambda c: sin(c.x - 30 * c.t),
    )  # fmt: skip


def large_numbers() -> pde.Problem:
    """A domain of a hundred, values of a thousand; all three kinds of boundary."""

    def u(c: C) -> Tensor:
        return 1000 * (sin(c.x / 50) + cos(c.y / 30))

    def upwards(c: C) -> Tensor:
        return -1000 / 30 * sin(c.y / 30) * torch.where(c.y > 50, 1.0, -1.0)

    return pde.Problem(
        pde.Box(x=(0, 100), y=(0, 100)),
        lambda u, c: pde.laplacian(u) + 1000 * (sin(c.x / 50) / 2500 + cos(c.y / 30) / 900),
        [pde.Robin(1.0, 10.0, lambda c: u(c) - 200, on="x=0"), pde.Dirichlet(u, on="x=100"),
         pde.Neumann(upwards, on="y")],
        reference=u,
    )  # fmt: skip


def many_waves() -> pde.Problem:
    """Helmholtz's equation with four whole waves each way."""
    k = 8 * PI

    def u(c: C) -> Tensor:
        return sin(k * c.x) * sin(k * c.y)

    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1)), lambda u, c: pde.laplacian(u) + k**2 * u + k**2 * sin(k * c.x) * sin(k * c.y),
        [pde.Dirichlet(0.0)], reference=u,
    )  # fmt: skip


def taylor_green() -> pde.Problem:
    """Decaying vortices: the Navier-Stokes equations over time."""
    nu = 0.05

    def flow(c: C) -> tuple[Tensor, Tensor, Tensor]:
        decay = exp(-2 * PI**2 * nu * c.t)
        pressure = -0.25 * (cos(2 * PI * c.x) + cos(2 * PI * c.y)) * decay**2
        return -cos(PI * c.x) * sin(PI * c.y) * decay, sin(PI * c.x) * cos(PI * c.y) * decay, pressure

    def equations(u: FieldView, v: FieldView, p: FieldView, c: C) -> list[Tensor]:
        return [
            u.t + u * u.x + v * u.y + p.x - nu * pde.laplacian(u),
            v.t + u * v.x + v * v.y + p.y - nu * pde.laplacian(v),
            pde.div(u, v),
        ]

    conditions: list[Condition] = [pde.Dirichlet(functools.partial(_part, flow, 2), on="x=0", of="p")]
    for k, name in enumerate("uv"):
        value = functools.partial(_part, flow, k)
        conditions += [pde.Initial(value, of=name), pde.Dirichlet(value, of=name)]
    return pde.Problem(pde.Box(x=(0, 1), y=(0, 1), t=(0, 1)), equations, conditions, ("u", "v", "p"), reference=flow)


def uneven_conductor() -> pde.Problem:
    """A coefficient that varies."""

    def u(c: C) -> Tensor:
        return sin(2 * PI * c.x) * exp(-c.y)

    def source(c: C) -> Tensor:
        a = 1 + 0.5 * sin(2 * PI * c.x)
        return -(2 * (PI * cos(2 * PI * c.x)) ** 2 * exp(-c.y) + a * (1 - 4 * PI**2) * u(c))

    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1)),
        lambda u, c: -(PI * cos(2 * PI * c.x) * u.x + (1 + 0.5 * sin(2 * PI * c.x)) * pde.laplacian(u)) - source(c),
        [pde.Dirichlet(u)], reference=u,
    )  # fmt: skip


def two_waves() -> pde.Problem:
    """A string that sounds two notes, the higher one eight times."""

    def u(c: C) -> Tensor:
        return sin(PI * c.x) * cos(2 * PI * c.t) + 0.5 * sin(4 * PI * c.x) * cos(8 * PI * c.t)

    return pde.Problem(
        pde.Box(x=(0, 1), t=(0, 1)), lambda u, c: u.tt - 4 * u.xx,
        [pde.Initial(u), pde.Initial(0.0, of="u.t"), pde.Dirichlet(0.0, on="x")], reference=u,
    )  # fmt: skip


def beam() -> pde.Problem:
    """A beam that swings; four derivatives by place, two by time."""

    def u(c: C) -> Tensor:
        return sin(PI * c.x) * cos(PI**2 * c.t)

    return pde.Problem(
        pde.Box(x=(0, 1), t=(0, 1)), lambda u, c: u.tt + u.xxxx,
        [pde.Initial(u), pde.Initial(0.0, of="u.t"), pde.Dirichlet(0.0, on="x"), pde.Dirichlet(0.0, on="x", of="u.xx")],
        reference=u,
    )  # fmt: skip


def hot_spot() -> pde.Problem:
    """A narrow peak, and a cube of the field."""

    def u(c: C) -> Tensor:
        return exp(-100 * ((c.x - 0.5) ** 2 + (c.y - 0.5) ** 2))

    def source(c: C) -> Tensor:
        return (400 - 40000 * ((c.x - 0.5) ** 2 + (c.y - 0.5) ** 2)) * u(c) + u(c) ** 3

    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1)), lambda u, c: -pde.laplacian(u) + u**3 - source(c), [pde.Dirichlet(u)], reference=u
    )


def stokes_flow() -> pde.Problem:
    """A slow whirl between walls; the pressure is given on one side."""

    def flow(c: C) -> tuple[Tensor, Tensor, Tensor]:
        u = PI / 2 * sin(PI * c.x) ** 2 * sin(2 * PI * c.y)
        v = -PI / 2 * sin(PI * c.y) ** 2 * sin(2 * PI * c.x)
        return u, v, cos(PI * c.x) * sin(PI * c.y)

    def drag(x: Tensor, y: Tensor) -> Tensor:
        """The Laplacian of the speed along ``x``."""
        return PI**3 * (cos(2 * PI * x) - 2 * sin(PI * x) ** 2) * sin(2 * PI * y)

    def equations(u: FieldView, v: FieldView, p: FieldView, c: C) -> list[Tensor]:
        force_x = -drag(c.x, c.y) - PI * sin(PI * c.x) * sin(PI * c.y)
        force_y = drag(c.y, c.x) + PI * cos(PI * c.x) * cos(PI * c.y)
        return [-pde.laplacian(u) + p.x - force_x, -pde.laplacian(v) + p.y - force_y, pde.div(u, v)]

    conditions = [pde.Dirichlet(0.0, of="u"), pde.Dirichlet(0.0, of="v"),
                  pde.Dirichlet(functools.partial(_part, flow, 2), on="x=0", of="p")]  # fmt: skip
    return pde.Problem(pde.Box(x=(0, 1), y=(0, 1)), equations, conditions, ("u", "v", "p"), reference=flow)


def moving_front() -> pde.Problem:
    """Burgers' equation in two dimensions: a front that runs along the diagonal."""

    def u(c: C) -> Tensor:
        return 1 / (1 + exp((c.x + c.y - c.t) / 0.1))

    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 1), t=(0, 1)), lambda u, c: u.t + u * u.x + u * u.y - 0.05 * pde.laplacian(u),
        [pde.Initial(u), pde.Dirichlet(u)], reference=u,
    )  # fmt: skip


def heat_from_a_kink() -> pde.Problem:
    """A beginning that isn't smooth."""

    def u(c: C) -> Tensor:
        width = (0.4 * c.t).sqrt()
        return c.x * torch.erf(c.x / width) + width / math.sqrt(PI) * exp(-((c.x / width) ** 2))

    return pde.Problem(
        pde.Box(x=(-1, 1), t=(0, 1)), lambda u, c: u.t - 0.1 * u.xx,
        [pde.Initial(lambda c: c.x.abs()), pde.Dirichlet(u, on="x")], reference=u,
    )  # fmt: skip


def plucked_string() -> pde.Problem:
    """A kink that runs to both sides and comes back."""

    def shape(x: Tensor) -> Tensor:
        """The string at rest, reflected at its ends: a wave of triangles."""
        return 2 / PI * torch.asin(sin(PI * x))

    return pde.Problem(
        pde.Box(x=(0, 1), t=(0, 1)), lambda u, c: u.tt - u.xx,
        [pde.Initial(lambda c: shape(c.x)), pde.Initial(0.0, of="u.t"), pde.Dirichlet(0.0, on="x")],
        reference=lambda c: (shape(c.x - c.t) + shape(c.x + c.t)) / 2,
    )  # fmt: skip


def call_option() -> pde.Problem:
    """Black and Scholes: coefficients that vary, and a payoff with a kink."""
    rate, volatility = 0.05, 0.2

    def u(c: C) -> Tensor:
        spread = volatility * c.t.sqrt()
        upper = (torch.log(c.x) + (rate + volatility**2 / 2) * c.t) / spread
        normal: Callable[[Tensor], Tensor] = torch.special.ndtr
        return c.x * normal(upper) - exp(-rate * c.t) * normal(upper - spread)

    return pde.Problem(
        pde.Box(x=(0.2, 2), t=(0, 1)),
        lambda u, c: u.t - volatility**2 / 2 * c.x**2 * u.xx - rate * c.x * u.x + rate * u,
        [pde.Initial(lambda c: (c.x - 1).clamp_min(0)), pde.Dirichlet(u, on="x")], reference=u,
    )  # fmt: skip


ZOO: dict[str, Callable[[], pde.Problem]] = {
    make.__name__: make
    for make in (
        korteweg_de_vries, klein_gordon, plate, boundary_layer, fisher, sine_gordon, ring, heat_in_a_plate, oscillator,
        schroedinger, growth, convection, large_numbers, many_waves, taylor_green, uneven_conductor,
        two_waves, beam, hot_spot, stokes_flow, moving_front, heat_from_a_kink, plucked_string, call_option,
    )
}  # fmt: skip
