"""Points, encodings, fields and their solvers on the device of the field."""

import math

import pytest
import torch
from pretend_trainer import trainer
from torch import nn

from lightning_effnn import pde
from lightning_effnn.modules import PDESolver

ENCODINGS = [
    lambda: pde.PositionalEncoding(3), lambda: pde.PositionalEncoding(2, learnable=True),
    lambda: pde.PositionalEncoding(3, coarse_to_fine=True), lambda: pde.FourierFeatures(5),
    lambda: pde.MultiresolutionGrid(2, 3), lambda: pde.MultiresolutionGrid(2, 3, table_size=7),
    lambda: pde.FactoredGrid(5, 3), lambda: pde.Compose(pde.PositionalEncoding(1), pde.FactoredGrid(4, 2)),
]  # fmt: skip
SHAPES = [
    pde.Box(x=(0, 1), y=(0, 2)), pde.Disc(1.0), pde.Disc(1.0, x=0, y=0, z=0), pde.Disc(1.0).over(t=(0, 1)),
    pde.Polygon([(0, 0), (1, 0), (0, 1)]), pde.Box(x=(-1, 1), y=(-1, 1)) - pde.Disc(0.5),
    pde.Box(x=(-1, 1), y=(-1, 1)) | pde.Disc(1.2),
]  # fmt: skip


def unit(dim, dtype=torch.float64):
    return torch.rand(20, dim, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_geometry(shape, dtype, device):
    u = unit(len(shape.names), dtype)
    for here, there in ((shape.interior(u), shape.interior(u.to(device))),
                        *zip(shape.boundary(u), shape.boundary(u.to(device)), strict=True)):  # fmt: skip
        assert (there.device, there.dtype) == (device, dtype)
        torch.testing.assert_close(there.cpu(), here)
    assert torch.equal(shape.contains(shape.interior(u.to(device))).cpu(), shape.contains(shape.interior(u)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_and_their_derivatives(encoding, dtype, device):
    here = encoding()
    torch.manual_seed(0)
    here.bind(2)
    here.to(dtype)
    if getattr(here, "coarse_to_fine", False):
        here.set_progress(0.5)
    points, indices = unit(2, dtype) * 2 - 1, pde.Indices.closure(2, [(2, 0), (1, 1)])
    known = here(points), pde.taylor(here, points, indices), pde.nested(here, points, indices)
    expected = [value.detach() for value in known]
    del known  # modules that move may be part of no graph on the pretended device
    there, moved = here.to(device), points.to(device)
    for value, known in zip((there(moved), pde.taylor(there, moved, indices), pde.nested(there, moved, indices)),
                            expected, strict=True):  # fmt: skip
        assert (value.device, value.dtype) == (device, dtype)
        torch.testing.assert_close(value.detach().cpu(), known)


def test_a_network_that_is_given_an_encoding_where_it_is(device):
    net = pde.encode(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to(device), pde.PositionalEncoding(2))
    assert net(torch.zeros(5, 2, device=device)).shape == (5, 1)


def waves(**options):
    points = torch.tensor([[0.2, 0.1], [0.7, 0.4]], dtype=torch.float64)
    return pde.Problem(
        pde.Box(x=(0, 1), t=(0, 1)),
        lambda u, c: u.tt - c.speed * u.xx,
        [pde.Dirichlet(lambda c: torch.zeros_like(c.t)), pde.Initial(lambda c: torch.sin(math.pi * c.x)),
         pde.Initial(0.0, of="u.t"), pde.Data(points, torch.zeros(2, dtype=torch.float64))],
        unknowns={"speed": 0.5},
        reference=lambda c: torch.sin(math.pi * c.x) * torch.cos(math.pi * c.t),
    )  # fmt: skip


def flow():
    return pde.Problem(
        pde.Box(x=(-1, 1), y=(0, 1)), lambda u, v, c: (pde.div(u, v), pde.laplacian(u) - v),
        [pde.Periodic("x"), pde.Neumann(0.0, on="y=0"), pde.Robin(1.0, lambda c: c.x, 0.0, on=lambda c: c.y > 0.5),
         pde.Dirichlet(0.0, on="y=1", of="v")],
        fields=("u", "v"),
    )  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", [waves, flow])
def test_residuals_and_their_points(problem, dtype, exact, device):
    options = {"field": pde.Field(pde.PositionalEncoding(2), hidden=(6,)), "points": 40, "boundary_points": 8,
               "causal": 1.0, "exact": exact}  # fmt: skip
    here, there = PDESolver(problem(), **options), PDESolver(problem(), **options | {"field": pde.Field(
        pde.PositionalEncoding(2), hidden=(6,))}).to(device)  # fmt: skip
    for solver in (here, there):
        solver.to(dtype)
        residuals = solver.residuals
        for _ in range(2):  # the second draw follows the residual
            residuals.blocks = solver.sampler.draw(residuals)
        residuals.balance()
    values, jacobian = there.residuals.jacobian()
    assert (values.device, values.dtype, jacobian.device) == (device, dtype, device)
    if dtype == torch.float64:
        expected = here.residuals.jacobian()
        torch.testing.assert_close(values.cpu(), expected[0])
        torch.testing.assert_close(jacobian.cpu(), expected[1])
    if problem is waves:
        assert there.rel_l2()["u"] == pytest.approx(here.rel_l2()["u"], rel=1e-4)
        assert there(torch.tensor([[0.5, 0.5]])).device == device


@pytest.mark.parametrize("method", ["dense", "cg"])
def test_levenberg_marquardt(method, device):
    x = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64, device=device))
    optimizer = pde.LevenbergMarquardt([x], method=method)
    for _ in range(3):
        loss = optimizer.step(lambda: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]))
    assert loss.device == device
    assert float(loss) < 12.1


@pytest.mark.parametrize("optimizer", ["lm", "adam+lbfgs"])
def test_a_fit(optimizer, device, tmp_path):
    errors = []
    for place in (torch.device("cpu"), device):
        solver = PDESolver(waves(), pde.Field(hidden=(6,)), optimizer, points=32, boundary_points=8, steps_per_epoch=1)
        trainer(place, max_epochs=2).fit(solver)
        errors.append(solver.to(place).rel_l2()["u"])
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)
    solver.save(tmp_path / "field.safetensors")
    pde.plot_solution(solver.residuals, tmp_path / "field.png")
