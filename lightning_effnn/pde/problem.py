"""An equation, where it holds, and what else is known."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.pde.conditions import Condition, Initial, Periodic, evaluate
from lightning_effnn.pde.geometry import Domain
from lightning_effnn.pde.indices import Derivative, Indices
from lightning_effnn.pde.names import Coordinates, FieldView, Values


@dataclass(frozen=True)
class Term:
    """One kind of residual: the equation's, or a condition's.

    Attributes:
        name: for messages and logs.
        condition: None for the equation itself.
        indices: the derivatives that it reads.
        equations: how many numbers a point yields.
    """

    name: str
    condition: Condition | None
    indices: Indices
    equations: int


class Problem:
    """A partial differential equation with its conditions.

    Args:
        domain: :class:`Box`, :class:`Disc`, :class:`Polygon`, what combines them, over time or not.
        residual: from the fields and the coordinates to what should be zero: one tensor ``[N]``, or several for a
            system. ``u.x``, ``u.xt`` are derivatives, ``u`` the value, ``c.x`` a coordinate, ``c.nu`` an unknown.
        conditions: :class:`Initial`, :class:`Dirichlet`, :class:`Neumann`, :class:`Robin`, :class:`Periodic`,
            :class:`Data`.
        fields: names, of which ``residual`` gets one argument each.
        unknowns: coefficients to be found, with the values to start from; one that starts above 0 stays there.
        reference: the known solution, from coordinates to ``[N]``, or to a sequence of them, one a field.

    Raises:
        ValueError: a residual or a condition that does not fit: a coordinate that is not there, a result of another
            shape, NaN; the message says which.

    Example:
        >>> from lightning_effnn import pde
        >>> burgers = Problem(
        ...     domain=pde.Box(x=(-1, 1), t=(0, 1)),
        ...     residual=lambda u, c: u.t + u * u.x - 0.01 / math.pi * u.xx,
        ...     conditions=[pde.Initial(lambda c: -torch.sin(math.pi * c.x)), pde.Dirichlet(0.0, on="x")],
        ... )
        >>> [term.name for term in burgers.terms]
        ['residual', 'initial', 'dirichlet']
        >>> Problem(pde.Box(x=(0, 1)), lambda u, c: u.yy)
        Traceback (most recent call last):
        ValueError: residual: u.yy: derivatives are named by the coordinates x, for example u.xx
    """

    def __init__(
        self,
        domain: Domain,
        residual: Callable[..., Any],
        conditions: Sequence[Condition] = (),
        fields: Sequence[str] = ("u",),
        unknowns: Mapping[str, float] | None = None,
        reference: Callable[[Coordinates], Any] | None = None,
    ) -> None:
        self.domain, self.residual, self.conditions = domain, residual, tuple(conditions)
        self.fields, self.unknowns, self.reference = tuple(fields), dict(unknowns or {}), reference
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise ValueError(f"fields={fields!r}: one name or more, all different, are needed")
        clash = set(self.unknowns) & set(domain.names)
        if clash:
            raise ValueError(f"unknowns {sorted(clash)} are named like coordinates")
        if any(not math.isfinite(start) for start in self.unknowns.values()):
            raise ValueError(f"unknowns={self.unknowns!r}: finite numbers to start from are needed")
        for condition in self.conditions:
            if not isinstance(condition, Condition):
                raise ValueError(f"a condition is a {type(condition).__name__}: use Initial, Dirichlet, Neumann, ...")
            condition.check(domain)
        equation = self._probe("residual", None)
        counts: dict[str, int] = {}
        terms = [equation]
        for condition in self.conditions:
            kind = type(condition).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            terms.append(self._probe(kind if counts[kind] == 1 else f"{kind}_{counts[kind]}", condition))
        self.terms = tuple(terms)

    def __repr__(self) -> str:
        return f"Problem of {', '.join(self.fields)} in {self.domain!r}: {', '.join(t.name for t in self.terms)}"

    @property
    def order(self) -> int:
        """Highest order of derivatives."""
        return max(term.indices.order for term in self.terms)

    @property
    def periodic_axes(self) -> tuple[int, ...]:
        """Axes along which the fields are periodic."""
        names = [c.axis for c in self.conditions if isinstance(c, Periodic)]
        return tuple(self.domain.names.index(name) for name in names)

    def sample(self, term: Term, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Map numbers in [0, 1) ``[N, d]`` to a term's points and outward normals ``[M, d]``."""
        if term.condition is None:
            points = self.domain.interior(unit)
            return points, torch.zeros_like(points)
        return term.condition.sample(self.domain, unit)

    def columns(self, points: Tensor) -> dict[str, Tensor]:
        """Return coordinates by name, each ``[N]``."""
        return dict(zip(self.domain.names, points.unbind(1), strict=True))

    def equations(
        self, term: Term, views: Sequence[FieldView], c: Coordinates, points: Tensor, normals: Tensor
    ) -> list[Tensor]:
        """Return what should be zero at points of a term: one ``[N]`` an equation."""
        if term.condition is not None:
            return term.condition.residuals(dict(zip(self.fields, views, strict=True)), c, points, normals)
        out = self.residual(*views, c)
        parts = out if isinstance(out, list | tuple) else [out]
        return [part.value if isinstance(part, Values) else part for part in parts]

    def solution(self, points: Tensor) -> Tensor:
        """Return the reference at points: ``[N, fields]``."""
        if self.reference is None:
            raise ValueError("the problem has no reference solution")
        c = Coordinates(self.columns(points))
        out = self.reference(c)
        columns = [out] if isinstance(out, Tensor) else list(out)
        if len(columns) != len(self.fields):
            raise ValueError(f"the reference returns {len(columns)} fields: there are {', '.join(self.fields)}")
        return torch.stack([evaluate(column, c, points) for column in columns], 1)

    def _probe(self, name: str, condition: Condition | None) -> Term:
        """Run a residual on random numbers, and note which derivatives it reads."""
        asked: set[Derivative] = set()
        dim = len(self.domain.names)
        generator = torch.Generator().manual_seed(0)
        unit = host_points(256, dim, generator)
        term = Term(name, condition, Indices.closure(dim, []), 1)
        points, normals = self.sample(term, unit)
        if not len(points):
            raise ValueError(f"{name}: the domain has no inside")
        random: dict[Derivative, Tensor] = {}

        def get(derivative: Derivative) -> Tensor:
            asked.add(derivative)
            if derivative not in random:
                random[derivative] = 0.5 + host_points(1, len(points), generator)[0]
            return random[derivative]

        views = [FieldView(field, self.domain.names, get) for field in self.fields]
        unknowns = {u: points.new_full((len(points),), start) for u, start in self.unknowns.items()}
        try:
            parts = self.equations(term, views, Coordinates(self.columns(points) | unknowns), points, normals)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: {error}") from error
        expected = len(points) // 2 if isinstance(condition, Periodic) else len(points)
        for part in parts:
            if not isinstance(part, Tensor) or part.shape != (expected,):
                shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ValueError(f"{name} returns {shape}: one number a point, [{expected}], is needed")
            if not part.isfinite().all():
                where = int((~part.isfinite()).nonzero()[0])
                at = ", ".join(f"{n}={v:.3g}" for n, v in zip(self.domain.names, points[where].tolist(), strict=True))
                raise ValueError(f"{name} is not finite, for example at {at}")
        return Term(name, condition, Indices.closure(dim, asked), len(parts))

    @classmethod
    def find(cls, target: str) -> Problem:
        """Return a problem by its name, as YAML can give it.

        Args:
            target: ``"package.module:name"`` of a problem, or of a function without arguments that returns one.

        Raises:
            ValueError: no such module or name, or something else behind it.

        >>> Problem.find("lightning_effnn.recipes.pde.heat:problem").fields
        ('u',)
        """
        module, _, name = target.partition(":")
        try:
            found = getattr(importlib.import_module(module), name or "problem")
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{target!r}: a Problem, or a function that returns one, as 'module:name': {error}"
            ) from error
        made = found() if callable(found) else found
        if not isinstance(made, cls):
            raise ValueError(f"{target!r} gives a {type(made).__name__}: a Problem is needed")
        return made

    def initial_conditions(self) -> list[Initial]:
        """Those at the beginning of time."""
        return [c for c in self.conditions if isinstance(c, Initial)]


def host_points(count: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Return the same random numbers in [0, 1) on any machine, ``[count, dim]``: to try an equation on, on the host."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.rand(count, dim, generator=generator, dtype=torch.float64, device="cpu")
