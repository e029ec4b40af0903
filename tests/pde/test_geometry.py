"""Shapes: what is inside, what is on the boundary, which way is out."""

import math

import pytest
import torch

from lightning_effnn.pde import Box, Disc, Polygon

L_SHAPE = Polygon([(0, 0), (1, 0), (1, -1), (-1, -1), (-1, 1), (0, 1)])
SHAPES = {
    "box": (Box(x=(-1, 2), y=(0, 1)), 3.0),
    "disc": (Disc(0.5, x=1.0, y=-1.0), math.pi / 4),
    "ball": (Disc(1.0, x=0.0, y=0.0, z=0.0), 4 / 3 * math.pi),
    "polygon": (L_SHAPE, 3.0),
    "clockwise": (Polygon([(0, 0), (0, 1), (1, 1), (1, 0)]), 1.0),
    "difference": (Box(x=(-1, 1), y=(-1, 1)) - Disc(0.5), 4 - math.pi / 4),
    "union": (Box(x=(-1, 1), y=(-1, 1)) | Disc(1.0, x=1.0, y=0.0), 4 + math.pi / 2),
    "intersection": (Box(x=(0, 2), y=(0, 2)) & Disc(1.0), math.pi / 4),
}


def unit(n, dim):
    return torch.rand(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SHAPES)
def test_area(name):
    shape, area = SHAPES[name]
    box = math.prod(b - a for a, b in zip(shape.low, shape.high, strict=True))
    inside = shape.interior(unit(20_000, len(shape.names)))
    assert len(inside) / 20_000 * box == pytest.approx(area, rel=0.03)
    assert shape.contains(inside).all()


@pytest.mark.parametrize("name", SHAPES)
def test_boundary_points_are_on_it_and_normals_point_out(name):
    shape, _ = SHAPES[name]
    points, normals = shape.boundary(unit(400, len(shape.names)))
    assert len(points) > 50
    assert shape.contains(points).all()
    assert torch.allclose(normals.norm(dim=1), torch.ones(len(normals), dtype=torch.float64))
    outside, within = points + 1e-4 * normals, points - 1e-4 * normals
    assert (~shape.contains(outside)).float().mean() > 0.99  # but for inner corners
    assert shape.contains(within).float().mean() > 0.99


def test_over_time():
    shape = Disc(1.0).over(t=(0, 2))
    assert shape.names == ("x", "y", "t")
    points, normals = shape.boundary(unit(50, 3))
    assert torch.allclose(points[:, :2].norm(dim=1), torch.ones(50, dtype=torch.float64))
    assert (normals[:, 2] == 0).all()
    assert shape.interior(unit(50, 3))[:, 2].max() > 1.5
    assert shape.contains(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 3.0]])).tolist() == [True, False]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Box(), "coordinates"), (lambda: Box(x=(1, 0)), "lower first"), (lambda: Box(x=(0, math.inf)), "finite"),
    (lambda: Box(x=3), "two finite"), (lambda: Disc(0), "radius"), (lambda: Disc(1, x=0), "two or three"),
    (lambda: Polygon([(0, 0), (1, 1)]), "three"), (lambda: Polygon([(0, 0), (1, 1), (2, 2)]), "area"),
    (lambda: Box(x=(0, 1), y=(0, 1)) - Disc(1, a=0, b=0), "same"),
    (lambda: Box(x=(0, 1), t=(0, 1)) - Box(x=(0, 1), t=(0, 1)), "over"),
    (lambda: Box(x=(0, 1), t=(0, 1)).over(t=(0, 1)), "time already"),
])  # fmt: skip
def test_bad_shapes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
