"""Where an equation holds: boxes, discs, polygons, what is left of one without another, each also over time.

Shapes are described by a signed distance, below zero inside. The coordinate ``t``, where there is one, is time: it has
a beginning and no boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EDGE = 1e-9
"""Distance, relative to the size of a domain, below which a point counts as on its boundary."""


class Domain:
    """A bounded set of points with named coordinates.

    Attributes:
        names: of the coordinates, in the order of the columns of points.
        low, high: corners of the smallest box around it.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def distance(self, points: Tensor) -> Tensor:
        """Return the signed distance ``[N]`` of points ``[N, d]``, below zero inside; exact only near the boundary."""
        raise NotImplementedError

    def boundary(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Map numbers in [0, 1) to points on the boundary.

        Args:
            unit: ``[N, d]``.

        Returns:
            Points and outward normals, both ``[M, d]``; ``M`` can be below ``N``.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {', '.join(self.names)}"

    @property
    def size(self) -> float:
        """Longest side of the box around it."""
        return max(b - a for a, b in zip(self.low, self.high, strict=True))

    def contains(self, points: Tensor) -> Tensor:
        """Return which points ``[N, d]`` are inside or on the boundary: ``[N]``."""
        return self.distance(points) <= EDGE * self.size

    def interior(self, unit: Tensor) -> Tensor:
        """Map numbers in [0, 1) ``[N, d]`` to points inside ``[M, d]``; those that fall outside are left out."""
        low, high = unit.new_tensor(self.low), unit.new_tensor(self.high)
        points = low + unit * (high - low)
        return points[self.distance(points) < 0]

    def over(self, t: tuple[float, float]) -> Domain:
        """Return the same shape at every time of an interval."""
        return Cylinder(self, t)

    def __sub__(self, other: Domain) -> Domain:
        return Combination(self, other, "difference")

    def __or__(self, other: Domain) -> Domain:
        return Combination(self, other, "union")

    def __and__(self, other: Domain) -> Domain:
        return Combination(self, other, "intersection")


class Box(Domain):
    """An interval for each coordinate.

    Args:
        intervals: ``name=(low, high)``.

    Raises:
        ValueError: no coordinate, or an interval that is empty or not finite.

    >>> box = Box(x=(-1, 1), t=(0, 2))
    >>> box.contains(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
    tensor([ True, False])
    """

    def __init__(self, **intervals: tuple[float, float]) -> None:
        if not intervals:
            raise ValueError("a box needs coordinates, for example Box(x=(-1, 1), t=(0, 1))")
        for name, interval in intervals.items():
            try:
                low, high = interval
                proper = math.isfinite(low) and math.isfinite(high) and low < high
            except (TypeError, ValueError):
                proper = False
            if not proper:
                raise ValueError(f"{name}={interval!r}: two finite numbers, the lower first, are needed")
        self.names = tuple(intervals)
        self.low = tuple(float(a) for a, _ in intervals.values())
        self.high = tuple(float(b) for _, b in intervals.values())

    def __repr__(self) -> str:
        sides = (f"{n}=({a:g}, {b:g})" for n, a, b in zip(self.names, self.low, self.high, strict=True))
        return f"Box({', '.join(sides)})"

    def distance(self, points: Tensor) -> Tensor:
        """Return the largest excess over a face."""
        low, high = points.new_tensor(self.low), points.new_tensor(self.high)
        return torch.maximum(low - points, points - high).amax(1)

    def interior(self, unit: Tensor) -> Tensor:
        """Map the unit box."""
        low, high = unit.new_tensor(self.low), unit.new_tensor(self.high)
        return low + unit * (high - low)

    def face(self, unit: Tensor, axis: int, upper: bool) -> tuple[Tensor, Tensor]:
        """Map numbers in [0, 1) ``[N, d]`` to points and outward normals on one face."""
        points = self.interior(unit)
        points[:, axis] = self.high[axis] if upper else self.low[axis]
        normals = torch.zeros_like(points)
        normals[:, axis] = 1.0 if upper else -1.0
        return points, normals

    def boundary(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Share points among all faces but those of time."""
        axes = [axis for axis, name in enumerate(self.names) if name != "t"]
        faces = [(axis, upper) for axis in axes for upper in (False, True)]
        parts = [self.face(u, *face) for u, face in zip(unit.tensor_split(len(faces)), faces, strict=True)]
        return torch.cat([p for p, _ in parts]), torch.cat([n for _, n in parts])


class Disc(Domain):
    """All points within a radius of a centre: a disc, or a ball with three coordinates.

    Args:
        radius: above 0.
        centre: ``name=number`` for each coordinate; ``x=0, y=0`` if none is given.

    Raises:
        ValueError: a radius that is not above 0; other than two or three coordinates.

    >>> Disc(1.0).contains(torch.tensor([[0.5, 0.5], [0.8, 0.8]]))
    tensor([ True, False])
    """

    def __init__(self, radius: float = 1.0, **centre: float) -> None:
        centre = centre or {"x": 0.0, "y": 0.0}
        if not radius > 0:
            raise ValueError(f"radius={radius!r}: a number above 0 is needed")
        if len(centre) not in (2, 3):
            raise ValueError(f"a centre of {len(centre)} coordinates: two or three are needed")
        self.names, self.radius, self.centre = tuple(centre), float(radius), tuple(map(float, centre.values()))
        self.low = tuple(c - self.radius for c in self.centre)
        self.high = tuple(c + self.radius for c in self.centre)

    def distance(self, points: Tensor) -> Tensor:
        """Distance to the centre, less the radius."""
        out: Tensor = torch.linalg.vector_norm(points - points.new_tensor(self.centre), dim=1) - self.radius
        return out

    def boundary(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Spread points evenly over the circle or sphere."""
        angle = 2 * math.pi * unit[:, 0]
        if len(self.names) == 2:
            normals = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
        else:  # Archimedes: a sphere's area is even in height
            height = 2 * unit[:, 1] - 1
            ring = (1 - height**2).clamp_min(0).sqrt()
            normals = torch.stack([ring * torch.cos(angle), ring * torch.sin(angle), height], 1)
        return unit.new_tensor(self.centre) + self.radius * normals, normals


class Polygon(Domain):
    """The inside of a closed line through points in the plane, which must not cross itself.

    Args:
        vertices: three or more, in order, either way round.
        names: of the two coordinates.

    Raises:
        ValueError: fewer than three vertices, or no area.

    >>> Polygon([(0, 0), (1, 0), (0, 1)]).contains(torch.tensor([[0.2, 0.2], [0.7, 0.7]]))
    tensor([ True, False])
    """

    def __init__(self, vertices: Sequence[tuple[float, float]], names: tuple[str, str] = ("x", "y")) -> None:
        corners = [(float(x), float(y)) for x, y in vertices]
        after = corners[1:] + corners[:1]
        area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, after, strict=True)) / 2
        if len(corners) < 3 or area == 0:
            raise ValueError(f"{len(corners)} vertices around an area of {abs(area):g}: three or more around some area")
        self.vertices = corners if area > 0 else corners[::-1]  # so that outward is to the right
        self.names = names
        columns = list(zip(*corners, strict=True))
        self.low, self.high = tuple(map(min, columns)), tuple(map(max, columns))

    def _edges(self, like: Tensor) -> tuple[Tensor, Tensor]:
        start = like.new_tensor(self.vertices)
        return start, start.roll(-1, 0) - start

    def distance(self, points: Tensor) -> Tensor:
        """Distance to the nearest edge; its sign by how often a ray crosses the line."""
        start, edge = self._edges(points)
        offset = points[:, None] - start
        along = ((offset * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0, 1)
        nearest = torch.linalg.vector_norm(offset - along[..., None] * edge, dim=-1).amin(1)
        end = start + edge
        straddles = (start[:, 1] > points[:, 1:]) != (end[:, 1] > points[:, 1:])
        level = torch.where(edge[:, 1] == 0, torch.ones_like(edge[:, 1]), edge[:, 1])
        crossing = start[:, 0] + (points[:, 1:] - start[:, 1]) / level * edge[:, 0]
        inside = (straddles & (points[:, :1] < crossing)).sum(1) % 2 == 1
        return torch.where(inside, -nearest, nearest)

    def boundary(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Spread points evenly along the edges."""
        start, edge = self._edges(unit)
        length = torch.linalg.vector_norm(edge, dim=1)
        ends = length.cumsum(0)
        where = unit[:, 0] * ends[-1]
        k = torch.searchsorted(ends, where, right=True).clamp_max(len(ends) - 1)
        share = (where - (ends - length)[k]) / length[k]
        normals = torch.stack([edge[:, 1], -edge[:, 0]], 1) / length[:, None]
        return start[k] + share[:, None] * edge[k], normals[k]


class Combination(Domain):
    """Two shapes with the same coordinates, joined, cut by one another, or one taken from the other.

    >>> (Box(x=(-1, 1), y=(-1, 1)) - Disc(0.5)).contains(torch.tensor([[0.0, 0.0], [0.9, 0.9]]))
    tensor([False,  True])
    """

    def __init__(self, first: Domain, second: Domain, kind: str) -> None:
        if first.names != second.names:
            raise ValueError(f"shapes with coordinates {first.names} and {second.names}: the same are needed")
        if "t" in first.names:
            raise ValueError("combine shapes in space, then give them time with .over(t=(0, 1))")
        self.first, self.second, self.kind, self.names = first, second, kind, first.names
        self.low, self.high = first.low, first.high
        if kind == "union":
            self.low = tuple(map(min, first.low, second.low))
            self.high = tuple(map(max, first.high, second.high))

    def distance(self, points: Tensor) -> Tensor:
        """Combine both distances."""
        a, b = self.first.distance(points), self.second.distance(points)
        if self.kind == "union":
            return torch.minimum(a, b)
        return torch.maximum(a, -b if self.kind == "difference" else b)

    def boundary(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Keep of both boundaries what lies on that of the whole."""
        parts = []
        signs = (1.0, -1.0 if self.kind == "difference" else 1.0)
        for shape, half, sign in zip((self.first, self.second), unit.tensor_split(2), signs, strict=True):
            points, normals = shape.boundary(half)
            kept = self.distance(points).abs() <= EDGE * self.size
            parts.append((points[kept], sign * normals[kept]))
        return torch.cat([p for p, _ in parts]), torch.cat([n for _, n in parts])


class Cylinder(Domain):
    """A shape in space over an interval of time.

    >>> Disc(1.0).over(t=(0, 2)).names
    ('x', 'y', 't')
    """

    def __init__(self, shape: Domain, t: tuple[float, float]) -> None:
        if "t" in shape.names:
            raise ValueError("the shape has time already")
        self.shape, self.time = shape, Box(t=t)
        self.names = (*shape.names, "t")
        self.low, self.high = (*shape.low, self.time.low[0]), (*shape.high, self.time.high[0])

    def distance(self, points: Tensor) -> Tensor:
        """The larger of both distances."""
        return torch.maximum(self.shape.distance(points[:, :-1]), self.time.distance(points[:, -1:]))

    def boundary(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """That of the shape, at all times."""
        points, normals = self.shape.boundary(unit[:, :-1])
        times = self.time.interior(unit[: len(points), -1:])
        return torch.cat([points, times], 1), torch.cat([normals, torch.zeros_like(times)], 1)
