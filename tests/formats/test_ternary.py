"""The ternary format against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_effnn.formats import Ternary

values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)


@given(v=values, scale=st.sampled_from([1.0, 0.5, 0.25, 8.0]))
def test_the_default_threshold_gives_the_nearest_level(v, scale):
    x = np.array(v, dtype=np.float32)
    levels = np.array([0.0, -scale, scale])  # zero first: argmin then gives it the ties
    nearest = levels[np.abs(x[:, None].astype(np.float64) - levels).argmin(1)]
    assert np.array_equal(Ternary(scale).quantize(torch.tensor(v)).numpy(), nearest)


def test_codes_are_two_bit_twos_complement():
    fmt = Ternary(0.5)
    assert fmt.encode(torch.tensor([0.0, 1.0, -1.0])).tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match="be one that encode gives for ternary, got 2"):
        fmt.decode(torch.tensor([2]))


def test_a_threshold_of_ones_own_decides_what_is_zero():
    fmt = Ternary(1.0, threshold=0.1)
    assert fmt.quantize(torch.tensor([0.1, 0.11, -0.11, 0.0])).tolist() == [0.0, 1.0, -1.0, 0.0]


def test_the_gradient_passes_up_to_half_a_step_beyond_the_last_level():
    x = torch.tensor([0.0, 0.75, -0.75, 0.76, -9.0], requires_grad=True)
    Ternary(0.5).quantize(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_a_fit_is_close_to_the_best_scale_and_threshold():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    magnitudes = x.abs().sort(descending=True).values
    # keeping the k largest at their mean leaves sum(x**2) - (sum of the k)**2 / k
    kept = torch.arange(1, 2001)
    best = (x**2).sum() - (magnitudes.cumsum(0) ** 2 / kept).max()
    fitted = ((Ternary().fit(x).quantize(x) - x) ** 2).sum()
    assert best * 0.9999 <= fitted <= best * 1.02


@given(v=values)
def test_anything_finite_can_be_fitted(v):
    fmt = Ternary().fit(torch.tensor(v))
    assert 0 <= fmt.threshold < fmt.scale


def test_zeros_fit_the_default():
    assert Ternary(3.0).fit(torch.zeros(2)) == Ternary()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, r"scale must be in"),
        (
            {"scale": 2.0, "threshold": 2.0},
            ValueError,
            r"threshold must be in \[0, scale\) = \[0, 2.0\), got 2.0",
        ),
        ({"threshold": -0.1}, ValueError, r"threshold must be in .* got -0.1"),
        ({"threshold": 1 - 1e-12}, ValueError, r"threshold must be in"),
        ({"threshold": "x"}, TypeError, r"threshold must be a number in \[0, scale\), got 'x'"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Ternary(**arguments)
