"""What holds at the beginning, on the boundary, and where somebody has measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.pde.geometry import Box, Domain
from lightning_effnn.pde.names import Coordinates, FieldView, parse

Value = float | Callable[[Coordinates], Tensor]
Where = str | Callable[[Coordinates], Tensor] | None


@dataclass(frozen=True)
class Condition:
    """A condition; see the kinds below.

    Attributes:
        of: the field, or a derivative of it: ``"u"``, ``"u.t"``; None stands for the first field.
        weight: of its squared residual; None balances it against the equation's.
    """

    def target(self, fields: dict[str, FieldView]) -> Tensor:
        """Return what it is about, ``[N]``."""
        field, derivative = self.split(tuple(fields))
        return getattr(fields[field], derivative) if derivative else fields[field].value

    def split(self, names: Sequence[str]) -> tuple[str, str]:
        """Return the field's name and the derivative's, which may be empty."""
        field, _, derivative = (getattr(self, "of", None) or names[0]).partition(".")
        if field not in names:
            raise ValueError(f"{type(self).__name__}(of={self.of!r}): the fields are {', '.join(names)}")  # type: ignore[attr-defined]
        return field, derivative

    def sample(self, domain: Domain, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Map numbers in [0, 1) ``[N, d]`` to points of the condition and outward normals, ``[M, d]``."""
        raise NotImplementedError

    def residuals(self, fields: dict[str, FieldView], c: Coordinates, points: Tensor, normals: Tensor) -> list[Tensor]:
        """Return what should be zero, each ``[N]``."""
        raise NotImplementedError

    def check(self, domain: Domain) -> None:
        """Refuse a domain on which the condition means nothing."""


def evaluate(value: Any, c: Coordinates, like: Tensor) -> Tensor:
    """Return a number or a function of coordinates as ``[N]``."""
    out = value(c) if callable(value) else value
    return torch.as_tensor(out, dtype=like.dtype, device=like.device).expand(like.shape[0])


@dataclass(frozen=True)
class Initial(Condition):
    """``of`` equals ``value`` at the beginning of time.

    >>> Initial(lambda c: torch.sin(c.x)), Initial(0.0, of="u.t").of
    (..., 'u.t')
    """

    value: Value
    of: str | None = None
    weight: float | None = None

    def check(self, domain: Domain) -> None:
        """Time is needed."""
        if "t" not in domain.names:
            raise ValueError(f"Initial needs the coordinate t: the domain has {', '.join(domain.names)}")

    def sample(self, domain: Domain, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Points at the beginning."""
        points = domain.interior(unit)
        points[:, domain.names.index("t")] = domain.low[domain.names.index("t")]
        return points, torch.zeros_like(points)

    def residuals(self, fields: dict[str, FieldView], c: Coordinates, points: Tensor, normals: Tensor) -> list[Tensor]:
        """Difference to the value."""
        return [self.target(fields) - evaluate(self.value, c, points)]


@dataclass(frozen=True)
class OnBoundary(Condition):
    """A condition on the boundary or a part of it: ``on`` says where.

    ``None`` is all of it; ``"x"`` both faces of a box across that axis; ``"x=0"`` the one there; a function of the
    coordinates says it point by point, as a boolean ``[N]``.
    """

    def faces(self, domain: Domain) -> list[tuple[int, bool]] | None:
        """Return the faces of a box as ``(axis, upper)``; None for other domains and parts of the boundary."""
        on: Where = self.on  # type: ignore[attr-defined]
        if callable(on) or not isinstance(domain, Box):
            return None
        if on is None:
            axes = [axis for axis, name in enumerate(domain.names) if name != "t"]
            return [(axis, upper) for axis in axes for upper in (False, True)]
        name, _, at = on.partition("=")
        axis = domain.names.index(name.strip())
        if not at:
            return [(axis, False), (axis, True)]
        return [(axis, abs(float(at) - domain.high[axis]) < abs(float(at) - domain.low[axis]))]

    def check(self, domain: Domain) -> None:
        """``on`` has to name a part of the boundary."""
        on: Where = self.on  # type: ignore[attr-defined]
        if on is None or callable(on):
            return
        kind = type(self).__name__
        if not isinstance(domain, Box):
            raise ValueError(f"{kind}(on={on!r}): faces have names on a Box alone; give a function of the coordinates")
        name, _, at = (part.strip() for part in on.partition("="))
        space = [n for n in domain.names if n != "t"]
        if name not in space:
            raise ValueError(f"{kind}(on={on!r}): the boundary is across {', '.join(space)}")
        axis = domain.names.index(name)
        ends = (domain.low[axis], domain.high[axis])
        try:
            known = not at or min(abs(float(at) - end) for end in ends) <= 1e-6 * (ends[1] - ends[0])
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"{kind}(on={on!r}): the faces are {name}={ends[0]:g} and {name}={ends[1]:g}")

    def sample(self, domain: Domain, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Points of that part of the boundary."""
        faces = self.faces(domain)
        if faces is not None and isinstance(domain, Box):
            parts = [domain.face(u, *face) for u, face in zip(unit.tensor_split(len(faces)), faces, strict=True)]
            return torch.cat([p for p, _ in parts]), torch.cat([n for _, n in parts])
        points, normals = domain.boundary(unit)
        on: Where = self.on  # type: ignore[attr-defined]
        if callable(on):
            kept = on(Coordinates(dict(zip(domain.names, points.T, strict=True))))
            points, normals = points[kept], normals[kept]
        if not len(points):
            raise ValueError(f"{type(self).__name__}: no point of the boundary is where `on` says")
        return points, normals


@dataclass(frozen=True)
class Dirichlet(OnBoundary):
    """``of`` equals ``value`` on the boundary.

    >>> Dirichlet(0.0, on="x").faces(Box(x=(0, 1), t=(0, 1)))
    [(0, False), (0, True)]
    """

    value: Value
    on: Where = None
    of: str | None = None
    weight: float | None = None

    def residuals(self, fields: dict[str, FieldView], c: Coordinates, points: Tensor, normals: Tensor) -> list[Tensor]:
        """Difference to the value."""
        return [self.target(fields) - evaluate(self.value, c, points)]


@dataclass(frozen=True)
class Robin(OnBoundary):
    """``a`` times the field plus ``b`` times its derivative along the outward normal equals ``value``."""

    a: Value
    b: Value
    value: Value
    on: Where = None
    of: str | None = None
    weight: float | None = None

    def residuals(self, fields: dict[str, FieldView], c: Coordinates, points: Tensor, normals: Tensor) -> list[Tensor]:
        """What is left."""
        view = fields[self.split(tuple(fields))[0]]
        slopes = torch.stack([getattr(view, name) for name in view._coordinates], 1)
        a, b, value = (evaluate(v, c, points) for v in (self.a, self.b, self.value))
        return [a * self.target(fields) + b * (slopes * normals).sum(1) - value]


class Neumann(Robin):
    """The derivative along the outward normal equals ``value``.

    >>> Neumann(1.0, on="x=1").value
    1.0
    """

    def __init__(self, value: Value, on: Where = None, of: str | None = None, weight: float | None = None) -> None:
        super().__init__(0.0, 1.0, value, on, of, weight)


@dataclass(frozen=True)
class Periodic(Condition):
    """The fields go on across an axis of a box as if its two faces were one.

    >>> Periodic("x").axis
    'x'
    """

    axis: str
    weight: float | None = None

    def check(self, domain: Domain) -> None:
        """An axis of a box is needed."""
        space = [n for n in domain.names if n != "t"]
        if not isinstance(domain, Box) or self.axis not in space:
            raise ValueError(f"Periodic({self.axis!r}): needs a Box and one of its axes {', '.join(space)}")

    def sample(self, domain: Domain, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of points: all on the lower face, then all on the upper one."""
        assert isinstance(domain, Box)
        axis = domain.names.index(self.axis)
        lower, upper = domain.face(unit, axis, False)[0], domain.face(unit, axis, True)[0]
        return torch.cat([lower, upper]), torch.zeros_like(torch.cat([lower, upper]))

    def residuals(self, fields: dict[str, FieldView], c: Coordinates, points: Tensor, normals: Tensor) -> list[Tensor]:
        """Differences of values and slopes, ``[N / 2]``."""
        n = len(points) // 2
        both = [q for view in fields.values() for q in (view.value, getattr(view, self.axis))]
        return [q[:n] - q[n:] for q in both]


@dataclass(frozen=True, eq=False)
class Data(Condition):
    """Measurements: ``of`` is ``values`` at ``points``.

    Args:
        points: ``[N, d]``, columns in the domain's order.
        values: ``[N]``.
    """

    points: Tensor
    values: Tensor
    of: str | None = None
    weight: float | None = None

    def check(self, domain: Domain) -> None:
        """Shapes have to fit."""
        points, values = (torch.as_tensor(part, device="cpu") for part in (self.points, self.values))
        if points.ndim != 2 or points.shape[1] != len(domain.names) or values.shape != points.shape[:1]:
            raise ValueError(
                f"Data with points {list(points.shape)} and values {list(values.shape)}: "
                f"[N, {len(domain.names)}] and [N] are needed"
            )

    def sample(self, domain: Domain, unit: Tensor) -> tuple[Tensor, Tensor]:
        """All of them, always."""
        points = torch.as_tensor(self.points, dtype=unit.dtype, device=unit.device)
        return points, torch.zeros_like(points)

    def residuals(self, fields: dict[str, FieldView], c: Coordinates, points: Tensor, normals: Tensor) -> list[Tensor]:
        """Difference to what was measured."""
        return [self.target(fields) - torch.as_tensor(self.values, dtype=points.dtype, device=points.device)]


def order_in_time(condition: Initial, names: Sequence[str], coordinates: Sequence[str]) -> int | None:
    """Return how often an initial condition derives by time: 0 or 1 can be built in, else None."""
    field, derivative = condition.split(names)
    index = parse(derivative, coordinates, field) if derivative else (0,) * len(coordinates)
    order = index[list(coordinates).index("t")]
    return order if sum(index) == order and order <= 1 else None
