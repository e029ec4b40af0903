"""Derivatives by rules equal those of nested autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_effnn import pde
from lightning_effnn.pde.indices import Indices, Laplacian
from lightning_effnn.pde.jets import Jet, NoRule, NotSmooth

ACTIVATIONS = [nn.Tanh(), nn.SiLU(), nn.GELU(), nn.Softplus(), nn.Sigmoid()]


def mlp(dim, activation, width=12, outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(dim, width), activation, nn.Linear(width, width), activation, nn.Linear(width, outputs)
    ).double()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.gain = nn.Linear(2, 2), nn.Linear(4, 1), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        h = x + self.gain * torch.sin(self.inner(x))
        return self.outer(torch.cat([h, (1 - h) * h / 2], dim=-1)) ** 2 - x[:, :1] / (2 + torch.exp(-h[:, 1:]))


def points(n, dim):
    return torch.rand(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def same(function, dim, wanted, atol=1e-10):
    indices = Indices.closure(dim, wanted)
    x = points(7, dim)
    ours, theirs = pde.taylor(function, x, indices), pde.nested(function, x, indices)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(("dim", "wanted"), [
    (1, [(4,)]), (2, [(2, 0), (0, 2), (1, 1)]), (2, [(2, 1), (0, 3)]), (3, [(2, 0, 0), (0, 2, 0), (0, 0, 2)]),
    (2, [Laplacian((0, 1))]), (3, [Laplacian((0, 2)), (0, 1, 1)]), (2, [Laplacian((0,)), Laplacian((1,)), (3, 0)]),
])  # fmt: skip
def test_networks(activation, dim, wanted):
    same(mlp(dim, activation), dim, wanted)


@settings(max_examples=20)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=3))
def test_any_mixed_derivative(wanted):
    same(mlp(3, nn.Tanh(), width=5), 3, wanted)


def test_forward_of_ones_own_with_sums_products_quotients_powers_and_slices():
    same(Residual().double(), 2, [(2, 1), (0, 2)])
    same(Residual().double(), 2, [Laplacian((0, 1))])


def test_a_laplacian_is_the_sum_of_second_derivatives_and_its_gradients_are_theirs():
    net, x = mlp(3, nn.SiLU()), points(7, 3)
    single = Indices.closure(3, [(2, 0, 0), (0, 0, 2)])
    summed = Indices.closure(3, [Laplacian((0, 2))])
    gradients = []
    for indices, places in ((single, single.members), (summed, [Laplacian((0, 2))])):
        parts = pde.taylor(net, x, indices)
        laplacian = sum(parts[indices.position[place]] for place in places if place == Laplacian((0, 2)) or 2 in place)
        penalty = laplacian.square().sum()
        first = torch.autograd.grad(penalty, list(net.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(net.parameters()))
        gradients.append([laplacian, *first, *second])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)
    assert len(summed) == 4


@pytest.mark.parametrize("encoding", [
    lambda: pde.PositionalEncoding(3), lambda: pde.PositionalEncoding((2, 0)),
    lambda: pde.PositionalEncoding(2, learnable=True), lambda: pde.PositionalEncoding(3, coarse_to_fine=True),
    lambda: pde.FourierFeatures(5), lambda: pde.MultiresolutionGrid(2, 3),
    lambda: pde.MultiresolutionGrid(2, 3, table_size=7), lambda: pde.FactoredGrid(5, 3),
    lambda: pde.Compose(pde.PositionalEncoding(1), pde.FactoredGrid(4, 2)),
])  # fmt: skip
@pytest.mark.parametrize("periodic", [(), (0,)])
def test_encodings(encoding, periodic):
    encoding = encoding()
    if periodic and (isinstance(encoding, pde.FourierFeatures) or getattr(encoding, "learnable", False)):
        with pytest.raises(ValueError, match="close"):
            encoding.bind(2, periodic)
        return
    torch.manual_seed(0)
    encoding.bind(2, periodic)
    encoding.double()
    if isinstance(encoding, pde.PositionalEncoding) and encoding.coarse_to_fine:
        encoding.set_progress(0.5)
    assert encoding(points(4, 2)).shape == (4, encoding.features)
    same(encoding, 2, [(2, 0), (1, 1)])
    same(encoding, 2, [Laplacian((0, 1))])
    if periodic:
        x = points(4, 2)
        ends = [torch.cat([torch.full_like(x[:, :1], end), x[:, 1:]], 1) for end in (-1.0, 1.0)]
        first, last = (pde.taylor(encoding, end, Indices.closure(2, [(2, 0)])) for end in ends)
        assert torch.allclose(first, last, atol=1e-9)


def test_grid_is_smooth_across_cells():
    encoding = pde.MultiresolutionGrid(1, 4)
    encoding.bind(1)
    encoding.double()
    edge = torch.tensor([[0.5 - 1e-9], [0.5 + 1e-9]], dtype=torch.float64)
    parts = pde.taylor(encoding, edge, Indices.closure(1, [(2,)]))
    assert torch.allclose(parts[:, 0], parts[:, 1], atol=1e-5)
    assert parts[2, 0, 1:].abs().max() > 1e-3


def test_spline_weights_sum_to_one():
    encoding = pde.MultiresolutionGrid(1, 4, features_per_level=1)
    encoding.bind(2)
    nn.init.ones_(encoding.tables[0])
    assert torch.allclose(encoding(points(20, 2).float())[:, 2:], torch.ones(20, 1))


def test_anything_else_goes_by_autograd_with_one_notice():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.i0(x).sum(1, keepdim=True)

    derivatives = pde.Derivatives(Odd())
    x = points(5, 2)
    with pytest.warns(UserWarning, match="i0") as noticed:
        first = derivatives(x, [(2, 0)])
    assert len(noticed) == 1
    assert torch.equal(first, derivatives(x, [(2, 0)]))
    curvature = pde.nested(lambda x: torch.special.i0(x[:, :1]), x, Indices.closure(2, [(2, 0)]))
    assert torch.allclose(first[2], curvature[2])


def test_relu_has_no_second_derivative_and_a_first_one_by_autograd():
    net = mlp(1, nn.ReLU())
    with pytest.raises(NotSmooth, match="relu"):
        pde.Derivatives(net)(points(3, 1), [(2,)])
    with pytest.warns(UserWarning, match="autograd"):
        assert pde.Derivatives(net)(points(3, 1), [(1,)]).shape == (2, 3, 2)


def test_dropout_in_training_has_no_rule():
    with pytest.raises(NoRule, match="dropout"):
        pde.taylor(nn.Dropout(0.5).train(), points(3, 1), Indices.closure(1, [(1,)]))


def test_operators():
    class Names:
        @staticmethod
        def view(name, k):
            from lightning_effnn.pde.names import FieldView

            values = {(0, 0, 0): 1.0, (1, 0, 0): 2.0 + k, (0, 1, 0): 3.0, Laplacian((0, 1)): 12.0}
            return FieldView(name, ("x", "y", "t"), lambda index: torch.full((2,), values[index]))

    u, v = Names.view("u", 0), Names.view("v", 1)
    assert torch.equal(pde.laplacian(u), torch.full((2,), 12.0))
    assert torch.equal(pde.div(u, v), torch.full((2,), 5.0))
    assert [g[0].item() for g in pde.grad(v)] == [3.0, 3.0]
    assert torch.equal(2 * u - u / 2 + u**2 + torch.sin(u) - 1, torch.full((2,), 1.5 + math.sin(1)))
    assert torch.equal(torch.where(u > 0, abs(-1 * u), v), torch.full((2,), 1.0))
    assert torch.equal(torch.stack([u, v], 1).sum(1), torch.full((2,), 2.0))
    with pytest.raises(ValueError, match="x, y"):
        pde.div(u)
    with pytest.raises(ValueError, match="space coordinate"):
        pde.Problem(pde.Box(t=(0, 1)), lambda u, c: u.t - pde.laplacian(u))


def test_product_rule_of_jets():
    indices = Indices.closure(1, [(3,)])
    x = Jet.of_points(torch.tensor([[2.0]], dtype=torch.float64), indices)
    assert ((x * x) * x).parts.flatten().tolist() == [8.0, 12.0, 12.0, 6.0]
    assert (1 / x).parts.flatten().tolist() == [0.5, -0.25, 0.25, -0.375]
