"""Second-order steps: as good as they should be, and careful."""

import itertools

import pytest
import torch

from lightning_effnn.pde import LevenbergMarquardt

pytestmark = pytest.mark.trains


def line(method, **options):
    torch.manual_seed(0)
    a = torch.randn(30, 5, dtype=torch.float64)
    b = torch.randn(30, dtype=torch.float64)
    x = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = LevenbergMarquardt([x], method=method, **options)
    return optimizer, x, lambda: a @ x - b, torch.linalg.lstsq(a, b[:, None]).solution[:, 0]


@pytest.mark.parametrize("method", ["dense", "cg"])
def test_solves_least_squares(method):
    optimizer, x, closure, solution = line(method)
    for _ in range(12):
        optimizer.step(closure)
    assert torch.allclose(x, solution, atol=1e-6)


def test_both_methods_take_the_same_step():
    steps = []
    for method in ("dense", "cg"):
        optimizer, x, closure, _ = line(method, damping=1e-9)
        optimizer.step(closure)
        steps.append(x.detach().clone())
    assert torch.allclose(*steps, atol=1e-6)


def test_never_raises_the_loss():
    x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = LevenbergMarquardt([x], damping=1e-9)
    losses = [float(optimizer.step(lambda: torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)]))) for _ in range(30)]
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 1e-20


def test_a_step_into_nan_is_taken_back_and_damped():
    x = torch.nn.Parameter(torch.tensor([0.01], dtype=torch.float64))
    optimizer = LevenbergMarquardt([x], damping=1e-9)  # the first trial goes to x < 0, where log is NaN
    losses = [float(optimizer.step(lambda: torch.log(x) - 1)) for _ in range(30)]
    assert x.item() == pytest.approx(2.718281828, rel=1e-4)
    assert all(loss == loss for loss in losses)


def test_nan_at_the_start_is_an_error_and_changes_nothing():
    x = torch.nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="not finite"):
        LevenbergMarquardt([x]).step(lambda: torch.log(x))
    assert x.item() == -1.0


def test_where_nothing_helps_parameters_stay():
    x = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = LevenbergMarquardt([x], attempts=3)
    optimizer.step(lambda: 1 + x.abs())
    assert x.item() == 0.0
    assert not optimizer.moved


def test_singular_equations_are_damped():
    x = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = LevenbergMarquardt([x])
    for _ in range(20):
        loss = optimizer.step(lambda: (x.sum() - 5)[None])
    assert float(loss) < 1e-12


def test_damping_falls_with_each_step_that_is_kept_but_not_below_its_least():
    optimizer, _, closure, _ = line("dense")
    optimizer.step(closure)
    assert optimizer.damping == pytest.approx(2e-4)
    optimizer.param_groups[0]["least_damping"] = 0.5
    assert optimizer.damping == 0.5
    optimizer.step(closure)
    assert optimizer.damping == 0.5
    optimizer.param_groups[0]["least_damping"] = 1e-15
    optimizer.step(closure)
    assert optimizer.damping == pytest.approx(0.1)


def test_state_goes_into_a_state_dict_and_back():
    optimizer, x, closure, _ = line("dense")
    optimizer.step(closure)
    optimizer.param_groups[0]["least_damping"] = 1e-2
    again, y, other, _ = line("dense")
    y.data.copy_(x.data)
    again.load_state_dict(optimizer.state_dict())
    optimizer.step(closure)
    again.step(other)
    assert torch.equal(x, y)
    assert again.damping == optimizer.damping == 1e-2


@pytest.mark.parametrize("options", [{"damping": 0}, {"decrease": 1.5}, {"increase": 1}, {"attempts": 0},
                                     {"method": "newton"}])  # fmt: skip
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LevenbergMarquardt([torch.nn.Parameter(torch.zeros(1))], **options)


def test_needs_a_closure():
    with pytest.raises(ValueError, match="closure"):
        LevenbergMarquardt([torch.nn.Parameter(torch.zeros(1))]).step()
