"""Kinks and jumps of given functions are found; smooth functions, steep ones too, pass."""

import lightning as L
import pytest
import torch

from lightning_effnn import pde
from lightning_effnn.modules import PDESolver
from lightning_effnn.pde import BuiltIn
from lightning_effnn.pde.smoothness import find_jump

LINES = torch.zeros(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.sin(20 * x),
        lambda x: torch.tanh((x - 0.7) / 1e-2),
        lambda x: x**0.5,  # its derivatives are infinite, but at the end
        lambda x: (x - 1.1).clamp_min(0) ** 4,
        lambda x: 1e6 + 0 * x,
        lambda x: 0 * x,
    ],
)
def test_smooth_functions_pass(function):
    assert find_jump(lambda x: function(x[:, 0]), LINES, 0, 2.0, 2) is None


@pytest.mark.parametrize(
    ("function", "order"),
    [
        (lambda x: (x > 1.1).double(), 0),
        (lambda x: x + 1e-3 * (x > 1.1), 0),
        (lambda x: (x - 1.1).abs(), 1),
        (lambda x: 100 * torch.sin(x) + (x - 1.1).clamp_min(0), 1),
        (lambda x: (x - 1.1).clamp_min(0) ** 2, 2),
        (lambda x: torch.where(x < 1.1, torch.sin(x), torch.sin(torch.tensor(1.1))), 1),
    ],
)
def test_the_lowest_derivative_that_jumps_is_found_where_it_does(function, order):
    jump = find_jump(lambda x: function(x[:, 0]), LINES, 0, 2.0, 2)
    assert (jump.order, jump.axis) == (order, 0)
    assert jump.at == pytest.approx(1.1, abs=2e-3)  # a cell


def test_a_derivative_that_is_not_asked_for_may_jump():
    assert find_jump(lambda x: (x[:, 0] - 1.1).clamp_min(0) ** 2, LINES, 0, 2.0, 1) is None


def test_a_function_that_autograd_does_not_see_through_is_told_from_a_smooth_one():
    assert find_jump(lambda x: torch.sin(x[:, 0].detach()), LINES, 0, 2.0, 2).order == 0


def test_where_a_function_has_no_values_nothing_is_said():
    """Lines run through the box around a shape, on whose corners a function may not be defined."""
    assert find_jump(lambda x: (x[:, 0] - 3).sqrt(), LINES, 0, 2.0, 2) is None
    disc = pde.Disc(1.0).over(t=(0, 1))
    beginning = pde.Initial(lambda c: (1.01 - c.x**2 - c.y**2).sqrt())
    problem = pde.Problem(disc, lambda u, c: u.t - pde.laplacian(u), [beginning])
    assert BuiltIn(problem).left == []


def heat(*conditions):
    return pde.Problem(pde.Box(x=(-1, 1), t=(0, 1)), lambda u, c: u.t - 0.1 * u.xx, conditions)


def test_a_beginning_with_a_kink_is_learned_and_that_is_said():
    problem = heat(pde.Initial(lambda c: 1 - c.x.abs()), pde.Dirichlet(0.0, on="x"))
    with pytest.warns(UserWarning, match=r"Initial: its derivative of order 1 by x jumps near x=.*learned, not built"):
        built = BuiltIn(problem)
    assert [type(c).__name__ for c in built.left] == ["Initial"]


def test_so_is_a_value_on_a_face_that_jumps_in_time_but_not_one_whose_second_derivative_by_time_does():
    with pytest.warns(UserWarning, match=r"Dirichlet: its value jumps near t=0.5"):
        assert len(BuiltIn(heat(pde.Dirichlet(lambda c: (c.t > 0.5) * 1.0, on="x=1"))).left) == 1
    smooth = heat(pde.Dirichlet(lambda c: (c.t - 0.5).clamp_min(0) ** 2, on="x=1"))  # by time the order is 1
    assert BuiltIn(smooth).left == []


def test_a_beginning_is_learned_with_its_speed():
    waves = pde.Problem(
        pde.Box(x=(-1, 1), t=(0, 1)), lambda u, c: u.tt - pde.laplacian(u),
        [pde.Initial(0.0), pde.Initial(lambda c: c.x.abs(), of="u.t"), pde.Dirichlet(0.0, on="x")],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="Initial: its derivative of order 1 by x"):
        built = BuiltIn(waves)
    assert [getattr(c, "of", None) for c in built.left] == [None, "u.t"]


def test_a_kink_across_two_axes_is_found():
    box = pde.Box(x=(0, 1), y=(0, 1), t=(0, 1))
    problem = pde.Problem(box, lambda u, c: u.t - pde.laplacian(u), [pde.Initial(lambda c: (c.x - c.y).abs())])
    with pytest.warns(UserWarning, match="derivative of order 1 by x"):
        assert len(BuiltIn(problem).left) == 1


@pytest.mark.trains
def test_the_solution_from_a_kink_is_found():
    """Built in, the kink would stay: the error of this problem was 0.64."""
    numbers = range(1, 40, 2)

    def reference(c):
        waves = [torch.cos(n * torch.pi * c.x / 2) * torch.exp(-((n * torch.pi / 2) ** 2) * 0.1 * c.t) / n**2
                 for n in numbers]  # fmt: skip
        return 8 / torch.pi**2 * sum(waves)

    problem = pde.Problem(
        pde.Box(x=(-1, 1), t=(0, 1)), lambda u, c: u.t - 0.1 * u.xx,
        [pde.Initial(lambda c: 1 - c.x.abs()), pde.Dirichlet(0.0, on="x")], reference=reference,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="learned, not built in"):
        solver = PDESolver(problem, points=512, boundary_points=128)
    L.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(solver)  # fmt: skip
    assert solver.rel_l2()["u"] < 3e-2
