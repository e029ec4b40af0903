r"""Conditions built into the field, so that they hold exactly whatever the network says.

On a box, a field with given values on some faces (and a given beginning, or a given speed at the beginning) is

.. math:: u = G + D \cdot \mathrm{net}

where :math:`G` interpolates the given values between the faces (transfinite interpolation: a Boolean sum over the
axes), and :math:`D` is zero on them. Neither depends on the network: both are evaluated once for each set of points.
What is given has to be as smooth as the equation asks for: a kink would stay in :math:`u` for ever, however the network
bends.

Source: Lagaris et al. (1998), "Artificial Neural Networks for Solving Ordinary and Partial Differential Equations";
Gordon and Hall (1973) for the interpolation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_effnn.pde.conditions import Condition, Dirichlet, Initial, evaluate, order_in_time
from lightning_effnn.pde.derivatives import nested
from lightning_effnn.pde.geometry import Box
from lightning_effnn.pde.indices import Indices
from lightning_effnn.pde.names import Coordinates
from lightning_effnn.pde.problem import Problem, host_points
from lightning_effnn.pde.smoothness import find_jump

_SAME = 1e-6
"""Difference, relative to the values, up to which conditions agree where they meet."""
_LINES = 4
"""Along which a given function is looked at, for each axis."""


@dataclass(frozen=True)
class _Given:
    """What is given on one face for one field: its value, or, for ``slope``, its derivative by time."""

    axis: int
    upper: bool
    condition: Dirichlet | Initial
    slope: bool = False


class BuiltIn:
    """The part of a problem's conditions that holds exactly.

    Args:
        problem: whose conditions are looked through.

    Attributes:
        taken: conditions that are built in.
        left: the others, which have to be learned.

    Warns:
        UserWarning: conditions that contradict each other where two faces meet, or whose values jump or have a kink;
            those are left to be learned.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.domain = problem, problem.domain
        self.given: list[list[_Given]] = []
        self.taken: list[Condition] = []
        for field in problem.fields:
            given = self._consistent(self._candidates(field))
            self.given.append([one for one, _ in given])
            self.taken += [condition for _, condition in given]
        self.left = [c for c in problem.conditions if not any(c is taken for taken in self.taken)]

    def _candidates(self, field: str) -> list[tuple[list[_Given], Condition]]:
        """Return what each condition gives for a field, beginnings first."""
        out: list[tuple[list[_Given], Condition]] = []
        problem, names = self.problem, self.domain.names
        time = names.index("t") if "t" in names else -1
        initial = [c for c in problem.initial_conditions() if c.split(problem.fields)[0] == field]
        found = [(order_in_time(c, problem.fields, names), c) for c in initial]
        orders = {order: c for order, c in found if order is not None}
        if 0 in orders and len(initial) == len(orders) and all(self._smooth(c, [(time, False)]) for c in initial):
            for order, beginning in sorted(orders.items(), key=lambda item: item[0]):
                out.append(([_Given(time, False, beginning, slope=order == 1)], beginning))
        for condition in problem.conditions:
            if isinstance(condition, Dirichlet) and condition.split(problem.fields) == (field, ""):
                faces = condition.faces(self.domain)
                if faces is not None and self._smooth(condition, faces):
                    out.append(([_Given(axis, upper, condition) for axis, upper in faces], condition))
        return out

    def _smooth(self, condition: Dirichlet | Initial, faces: Sequence[tuple[int, bool]]) -> bool:
        """Whether what is given has the derivatives along the faces that the equation asks for; warn if not."""
        if not callable(condition.value):
            return True
        domain, asked = self.domain, self.problem.terms[0].indices
        unit = host_points(_LINES, len(domain.names))
        low, high = unit.new_tensor(domain.low), unit.new_tensor(domain.high)
        for face, upper in faces:
            across = self._on(_Given(face, upper, condition), low + unit * (high - low))
            for axis in set(range(len(domain.names))) - {face}:
                start = across.clone()
                start[:, axis] = low[axis]
                jump = find_jump(
                    lambda x: self._value_of(condition, x), start, axis, domain.high[axis], asked.highest(axis)
                )
                if jump is not None:
                    what = "value" if not jump.order else f"derivative of order {jump.order} by {domain.names[axis]}"
                    warnings.warn(
                        f"{type(condition).__name__}: its {what} jumps near {domain.names[axis]}={jump.at:.3g}: it is "
                        "learned, not built in",
                        stacklevel=5,
                    )
                    return False
        return True

    def _consistent(self, candidates: list[tuple[list[_Given], Condition]]) -> list[tuple[_Given, Condition]]:
        """Leave out what is given twice, or contradicts something that was taken before, where they meet."""
        taken: list[tuple[_Given, Condition]] = []
        for given, condition in candidates:
            against = [(new, old) for new in given for old, _ in taken if not self._agree(new, old)]
            if against:
                names, (new, old) = self.domain.names, against[0]
                warnings.warn(
                    f"{type(condition).__name__} on {names[new.axis]} and {type(old.condition).__name__} on "
                    f"{names[old.axis]} contradict each other where they meet: the former is learned, not built in",
                    stacklevel=4,
                )
                continue
            taken += [(one, condition) for one in given]
        return taken

    def _agree(self, new: _Given, old: _Given) -> bool:
        if new.axis == old.axis:
            return (new.upper, new.slope) != (old.upper, old.slope)
        if not isinstance(self.domain, Box) or new.slope or old.slope:
            return True  # shapes without faces have nothing but a beginning
        points = self.domain.interior(host_points(256, len(self.domain.names)))
        scale = max(float(self._value(one, self._on(one, points)).abs().max()) for one in (new, old))
        points = self._on(new, self._on(old, points))
        return bool((self._value(new, points) - self._value(old, points)).abs().max() <= _SAME * scale)

    def _on(self, given: _Given, points: Tensor) -> Tensor:
        """Move points along the axis to the face."""
        at = self.domain.high[given.axis] if given.upper else self.domain.low[given.axis]
        columns = list(points.unbind(1))
        columns[given.axis] = torch.full_like(columns[given.axis], at)
        return torch.stack(columns, 1)

    def _value(self, given: _Given, points: Tensor) -> Tensor:
        return self._value_of(given.condition, points)

    def _value_of(self, condition: Dirichlet | Initial, points: Tensor) -> Tensor:
        return evaluate(condition.value, Coordinates(self.problem.columns(points)), points)

    def _axes(self, field: int) -> list[list[_Given]]:
        """Group by axis; time comes first, so that a slope meets nothing before it."""
        axes: dict[int, list[_Given]] = {}
        for given in self.given[field]:
            axes.setdefault(given.axis, []).append(given)
        return list(axes.values())

    def _interpolated(self, field: int, points: Tensor, axes: Sequence[list[_Given]]) -> Tensor:
        """Return ``G`` ``[N]``: that of all axes but the last, and what it lacks on the faces of the last one."""
        if not axes:
            return points.new_zeros(len(points))
        *before, faces = axes
        out = self._interpolated(field, points, before)
        for given in faces:
            low, high = self.domain.low[given.axis], self.domain.high[given.axis]
            along = points[:, given.axis] - low
            projected = self._on(given, points)
            lacking = self._value(given, projected)
            if given.slope:  # of the part before, which is none, the slope is zero
                out = out + along * lacking
                continue
            lacking = lacking - self._interpolated(field, projected, before)
            values = [one for one in faces if not one.slope]
            share = along / (high - low)
            share = torch.ones_like(along) if len(values) == 1 else share if given.upper else 1 - share
            out = out + share * lacking
        return out

    def _vanishing(self, field: int, points: Tensor) -> Tensor:
        """Return ``D`` ``[N]``: zero where something is given, about one in the middle."""
        out = points.new_ones(len(points))
        for faces in self._axes(field):
            axis = faces[0].axis
            low, high = self.domain.low[axis], self.domain.high[axis]
            share = (points[:, axis] - low) / (high - low)
            if any(given.upper for given in faces) and any(not given.upper for given in faces):
                out = out * 4 * share * (1 - share)
            elif any(given.upper for given in faces):
                out = out * (1 - share)
            else:
                out = out * share ** len(faces)  # squared with a slope
        return out

    def parts(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``G`` and ``D`` at points ``[N, d]``, each ``[N, fields]``."""
        count = range(len(self.problem.fields))
        given = torch.stack([self._interpolated(k, points, self._axes(k)) for k in count], 1)
        return given, torch.stack([self._vanishing(k, points) for k in count], 1)

    def jets(self, points: Tensor, indices: Indices) -> tuple[Tensor, Tensor]:
        """Return derivatives of ``G`` and ``D`` at points, each ``[K, N, fields]``."""
        both = nested(lambda x: torch.cat(self.parts(x), 1), points.detach(), indices).detach()
        given, vanishing = both.chunk(2, -1)
        return given, vanishing
