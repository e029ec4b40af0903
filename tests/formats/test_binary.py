"""The binary format against the sign function and a search for its scale."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_effnn.formats import Binary

values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)


@given(v=values, scale=st.sampled_from([1.0, 0.5, 0.1, 7.3]))
def test_levels_are_the_sign_times_the_scale(v, scale):
    x = torch.tensor(v)
    expected = torch.where(x < 0, -1.0, 1.0) * scale
    assert torch.equal(Binary(scale).quantize(x), expected)
    assert torch.equal(Binary(scale).encode(x), (x >= 0).to(torch.uint8))


def test_the_gradient_passes_up_to_the_scale():
    x = torch.tensor([-0.5, 0.5, 0.51, -0.51, 0.0], requires_grad=True)
    Binary(0.5).quantize(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


@given(v=values)
def test_the_fitted_scale_has_the_least_squared_error(v):
    x = torch.tensor(v, dtype=torch.float64)
    best = Binary().fit(x)

    def loss(fmt):
        return float(((fmt.quantize(x) - x) ** 2).sum())

    for factor in (0.9, 1.1):
        if x.any() and best.scale > 1e-20:
            assert loss(best) <= loss(Binary(best.scale * factor)) * (1 + 1e-6)


def test_zeros_fit_scale_one():
    assert Binary(3.0).fit(torch.zeros(2)) == Binary()


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"scale must be in \[2\*\*-100, 2\*\*100\], got -1.0"):
        Binary(-1.0)
    with pytest.raises(TypeError, match="scale must be a positive number, got None"):
        Binary(None)
