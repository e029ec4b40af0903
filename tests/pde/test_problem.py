"""Equations and conditions: what fits, what is refused, what holds exactly."""

import math
import warnings

import pytest
import torch

from lightning_effnn import pde
from lightning_effnn.pde import BuiltIn, Field, Residuals
from lightning_effnn.pde.indices import Indices
from lightning_effnn.pde.jacobian import NotCovered

BOX = pde.Box(x=(-1, 1), t=(0, 2))


def heat(*conditions, **options):
    return pde.Problem(BOX, lambda u, c: u.t - u.xx, conditions, **options)


def test_terms_know_the_derivatives_they_read():
    problem = heat(pde.Initial(0.0), pde.Neumann(0.0, on="x=1"))
    assert [t.name for t in problem.terms] == ["residual", "initial", "neumann"]
    assert [t.indices.members for t in problem.terms] == [
        ((0, 0), (0, 1), (1, 0), (2, 0)), ((0, 0),), ((0, 0), (0, 1), (1, 0)),
    ]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [
    (lambda: pde.Problem(BOX, lambda u, c: u.y), r"u\.y: derivatives are named by the coordinates x, t"),
    (lambda: pde.Problem(BOX, lambda u, c: u.t - c.y), r"c\.y: there is c\.x, c\.t"),
    (lambda: pde.Problem(BOX, lambda u, c: 1.0), "one number a point"),
    (lambda: pde.Problem(BOX, lambda u, c: u.t.sum()), "one number a point"),
    (lambda: pde.Problem(BOX, lambda u, c: torch.log(c.x)), "not finite, for example at x="),
    (lambda: pde.Problem(BOX, lambda u, c: u.t, fields=("u", "u")), "different"),
    (lambda: pde.Problem(BOX, lambda u, c: u.t, unknowns={"x": 1.0}), "named like coordinates"),
    (lambda: pde.Problem(BOX, lambda u, c: u.t, unknowns={"k": math.nan}), "finite"),
    (lambda: pde.Problem(BOX, lambda u, c: u.t, [0.0]), "a condition is a float"),
    (lambda: heat(pde.Dirichlet(0.0, on="t")), "across x"),
    (lambda: heat(pde.Dirichlet(0.0, on="x=3")), "x=-1 and x=1"),
    (lambda: heat(pde.Dirichlet(0.0, of="v")), "fields are u"),
    (lambda: heat(pde.Periodic("t")), "axes x"),
    (lambda: heat(pde.Data(torch.zeros(3, 1), torch.zeros(3))), r"\[N, 2\]"),
    (lambda: pde.Problem(pde.Box(x=(0, 1)), lambda u, c: u.x, [pde.Initial(0.0)]), "coordinate t"),
    (lambda: pde.Problem(pde.Disc(), lambda u, c: u.x, [pde.Dirichlet(0.0, on="x")]), "on a Box alone"),
    (lambda: heat(pde.Dirichlet(0.0, on=lambda c: c.x > 5)), "no point"),
])  # fmt: skip
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def exact(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return BuiltIn(problem)


def on_faces(problem, built, index=(0, 0), n=64):
    """Built-in value (or derivative) less the wanted one at points of each condition, for a random network."""
    field = Field(hidden=(8,))
    field.bind(problem.domain.low, problem.domain.high, 1, seed=3)
    residuals = Residuals(problem, field, exact=built)
    worst = 0.0
    for term in problem.terms[1:]:
        unit = torch.rand(n, len(problem.domain.names), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        points, normals = problem.sample(term, unit)
        (rest,) = residuals.at(residuals.block(term, points, normals))
        worst = max(worst, float(rest.detach().abs().max()))
    return worst


@pytest.mark.parametrize("conditions", [
    [pde.Initial(lambda c: torch.cos(c.x)), pde.Dirichlet(lambda c: math.cos(1) * torch.exp(c.t), on="x")],
    [pde.Initial(lambda c: torch.cos(c.x)), pde.Initial(lambda c: c.x**2 - 1, of="u.t"),
     pde.Dirichlet(math.cos(1), on="x=1")],
    [pde.Dirichlet(lambda c: c.t, on="x=-1"), pde.Dirichlet(lambda c: 1 - c.t**2, on="x=1")],
    [pde.Initial(lambda c: torch.sin(math.pi * c.x)), pde.Dirichlet(0.0, on="x")],
])  # fmt: skip
def test_built_in_conditions_hold_whatever_the_network_says(conditions):
    problem = heat(*conditions)
    built = exact(problem)
    assert len(built.left) == 0
    assert on_faces(problem, built) < 1e-9


def test_built_in_on_a_cube():
    value = lambda c: c.x * c.y + torch.sin(c.z) * c.x  # noqa: E731
    box = pde.Box(x=(0, 1), y=(-1, 1), z=(0, 2))
    problem = pde.Problem(box, lambda u, c: pde.laplacian(u), [pde.Dirichlet(value)])
    assert on_faces(problem, exact(problem)) < 1e-9


def test_contradiction_at_a_corner_is_told_and_learned():
    problem = heat(pde.Initial(1.0), pde.Dirichlet(0.0, on="x"))
    with pytest.warns(UserWarning, match="Dirichlet on x and Initial on t contradict"):
        built = BuiltIn(problem)
    assert [type(c).__name__ for c in built.left] == ["Dirichlet"]


def test_neumann_robin_data_and_parts_of_faces_are_learned():
    problem = heat(pde.Neumann(0.0, on="x=1"), pde.Robin(1.0, 2.0, 3.0, on="x=-1"),
                   pde.Dirichlet(0.0, on=lambda c: c.x < 0), pde.Data(torch.zeros(3, 2), torch.zeros(3)))  # fmt: skip
    assert exact(problem).taken == []


def test_robin_and_neumann_residuals():
    problem = heat(pde.Neumann(lambda c: 2 * c.x, on="x"), pde.Robin(1.0, lambda c: c.t, 0.0, on="x=1"))
    residuals = Residuals(problem, Quadratic())
    blocks = [residuals.block(t, *problem.sample(t, torch.rand(8, 2, dtype=torch.float64))) for t in problem.terms]
    (neumann,), (robin,) = residuals.at(blocks[1]), residuals.at(blocks[2])
    x, t = blocks[1].points[:, 0], blocks[2].points[:, 1]
    assert torch.allclose(neumann, 2 * x * x.sign() - 2 * x)  # u = x^2 + t, outward slope 2 |x|
    assert torch.allclose(robin, 1 + t + t * 2)


class Quadratic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return (x[:, :1] ** 2 + x[:, 1:]) * self.scale


def test_periodic_residuals_are_differences_across_the_axis():
    problem = heat(pde.Periodic("x"))
    residuals = Residuals(problem, Quadratic())
    term = problem.terms[1]
    value, slope = residuals.at(residuals.block(term, *problem.sample(term, torch.rand(8, 2, dtype=torch.float64))))
    assert torch.allclose(value, torch.zeros(8, dtype=torch.float64))
    assert torch.allclose(slope, torch.full((8,), -4.0, dtype=torch.float64))


SYSTEM = pde.Problem(
    BOX,
    lambda u, v, c: (u.t + c.k * v.xx + u * u.x, v.t - u),
    [pde.Initial(lambda c: c.x, of="u"), pde.Periodic("x"), pde.Data(torch.rand(5, 2), torch.rand(5), of="v")],
    fields=("u", "v"),
    unknowns={"k": 0.5, "m": -1.0},
)


@pytest.mark.parametrize("field", [
    lambda: Field(hidden=(6, 5)), lambda: Field(pde.PositionalEncoding(2, learnable=True), (5,)), lambda: Field("none"),
    lambda: Field(pde.Compose(pde.MultiresolutionGrid(2, 3), pde.FactoredGrid(4, 2)), (5,), "silu"),
])  # fmt: skip
@pytest.mark.parametrize("built", [True, False])
def test_jacobian_equals_autograd_row_by_row(field, built):
    field = field()
    field.bind(BOX.low, BOX.high, 2)
    residuals = Residuals(SYSTEM, field, exact=BuiltIn(SYSTEM) if built else None)
    unit = torch.rand(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    residuals.blocks = [residuals.block(t, *SYSTEM.sample(t, unit)) for t in residuals.terms]
    residuals.weights["residual"] = [1.0, 3.0]
    residuals.blocks[0].emphasis = torch.linspace(0.1, 1, 6, dtype=torch.float64)
    vector, jacobian = residuals.jacobian()
    again = residuals()
    assert torch.allclose(vector, again)
    for row, number in zip(jacobian, again, strict=True):
        grads = torch.autograd.grad(number, residuals.parameters, retain_graph=True, allow_unused=True)
        flat = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                          for g, p in zip(grads, residuals.parameters, strict=True)])  # fmt: skip
        assert torch.allclose(row, flat, rtol=1e-8, atol=1e-10)


def test_parameters_that_are_used_unseen_are_noticed():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2).double()

        def forward(self, x):
            return torch.nn.functional.linear(self.layer(x), self.layer.weight[:1] * 1)

    problem = heat()
    residuals = Residuals(problem, Tied())
    residuals.blocks = [residuals.block(problem.terms[0], *problem.sample(problem.terms[0], torch.rand(5, 2).double()))]
    with pytest.warns(UserWarning, match="autograd"), pytest.raises(NotCovered):
        residuals.jacobian()


@pytest.mark.parametrize(("field", "message"), [
    (Field(activation="relu"), "order 2"),
    (torch.nn.Linear(2, 1).half(), "float16"),
])  # fmt: skip
def test_fields_that_cannot_give_what_is_asked(field, message):
    with pytest.raises(ValueError, match=message):
        Residuals(heat(), field)


def test_balance_makes_conditions_pull_as_hard_and_keeps_given_weights():
    problem = heat(pde.Initial(0.0), pde.Dirichlet(0.0, on="x", weight=7.0))
    field = Field(hidden=(6,))
    field.bind(BOX.low, BOX.high, 1)
    residuals = Residuals(problem, field)
    residuals.blocks = [residuals.block(t, *problem.sample(t, torch.rand(9, 2, dtype=torch.float64)))
                        for t in problem.terms]  # fmt: skip
    residuals.balance()
    assert residuals.weights["dirichlet"] == [7.0]
    _, jacobian = residuals.jacobian()
    pulls = jacobian.square().sum(1)
    assert float(pulls[:9].sum()) == pytest.approx(float(pulls[9:18].sum()))


def test_closed_sets_of_derivatives():
    assert Indices.closure(2, [(1, 1)]).members == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert Indices.closure(1, []).order == 0


def test_encode_gives_a_network_an_encoding():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    encoded = pde.encode(net, pde.PositionalEncoding(3), [0, 0], [1, 2])
    assert net[0].in_features == 14
    x = torch.rand(4, 2, dtype=torch.float64)
    indices = Indices.closure(2, [(2, 0)])
    assert torch.allclose(pde.taylor(encoded, x, indices), pde.nested(encoded, x, indices))
    with pytest.raises(ValueError, match="Linear"):
        pde.encode(torch.nn.Tanh(), pde.PositionalEncoding(3))
