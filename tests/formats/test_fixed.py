"""Fixed point against numpy's integers and torch's fake quantisation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_effnn.formats import FixedPoint

widths = st.integers(2, 16)
scales = st.floats(2.0**-20, 2.0**20, width=32)
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)


@given(bits=widths, scale=scales, signed=st.booleans(), v=values)
def test_numbers_and_gradients_are_those_of_torch_fake_quantize(bits, scale, signed, v):
    fmt = FixedPoint(bits, scale=scale, signed=signed)
    ours = torch.tensor(v, requires_grad=True)
    theirs = torch.tensor(v, requires_grad=True)
    q = fmt.quantize(ours)
    expected = torch.fake_quantize_per_tensor_affine(theirs, scale, 0, *fmt.integer_range)
    assert torch.equal(q, expected)
    q.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@given(bits=widths, scale=scales, signed=st.booleans(), v=values)
def test_the_error_is_at_most_half_a_step_inside_the_range(bits, scale, signed, v):
    fmt = FixedPoint(bits, scale=scale, signed=signed)
    low, high = fmt.integer_range
    x = torch.tensor(v, dtype=torch.float64).clamp(low * scale, high * scale)
    error = (fmt.quantize(x) - x).abs()
    assert bool((error <= scale / 2 * (1 + 1e-9) + x.abs() * 2.0**-24).all())


@given(bits=st.sampled_from([8, 16, 32]), signed=st.booleans(), v=values)
def test_codes_are_the_twos_complement_of_numpy_integers(bits, signed, v):
    fmt = FixedPoint(bits, signed=signed)
    x = torch.tensor(v, dtype=torch.float64)
    integers = np.clip(np.rint(x.numpy()), *fmt.integer_range).astype(f"int{bits}" if signed else f"uint{bits}")
    assert np.array_equal(fmt.encode(x).numpy().astype(np.uint64), integers.view(f"uint{bits}"))


@given(bits=widths, signed=st.booleans(), v=values, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_fitted_format_neither_saturates_nor_wastes_range(bits, signed, v, dtype):
    x = torch.tensor(v, dtype=dtype)
    x = x.abs() if not signed else x
    fmt = FixedPoint(bits, signed=signed).fit(x)
    x.requires_grad_()
    fmt.quantize(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    peak = x.detach().abs().max()
    if peak > 2.0**-80:
        code = fmt.encode(peak).item()
        assert code == fmt.integer_range[1]


def test_fitting_an_unsigned_format_ignores_negative_numbers():
    assert FixedPoint(2, signed=False).fit(torch.tensor([-100.0, 6.0])).scale == 2.0
    assert FixedPoint(2, signed=False).fit(torch.tensor([-100.0])).scale == 1.0
    assert FixedPoint(8).fit(torch.tensor([1e-45])).scale == 2.0**-100


def test_widths_alone_make_plain_integers():
    assert FixedPoint(8) == FixedPoint(8, fraction_bits=0) == FixedPoint(8, scale=1) == FixedPoint(np.int64(8))
    assert FixedPoint(8).quantize(torch.tensor([2.5, 3.5, -128.6, 127.4])).tolist() == [
        2.0,
        4.0,
        -128.0,
        127.0,
    ]


def test_fraction_bits_and_a_power_of_two_scale_are_the_same():
    assert FixedPoint(8, 3) == FixedPoint(8, scale=0.125)
    assert hash(FixedPoint(8, 3)) == hash(FixedPoint(8, scale=0.125))
    assert [FixedPoint(8, f).fraction_bits for f in (-100, 0, 7, 100)] == [-100, 0, 7, 100]
    assert FixedPoint(8, scale=0.1).fraction_bits is None
    assert replace(FixedPoint(8, 3, signed=False), bits=4) == FixedPoint(4, 3, signed=False)


def test_one_bit_is_minus_one_or_zero_signed_and_zero_or_one_unsigned():
    x = torch.tensor([-2.0, -0.4, 0.6, 3.0])
    assert FixedPoint(1).quantize(x).tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert FixedPoint(1, signed=False).quantize(x).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_negative_zero_becomes_zero():
    assert not FixedPoint(8, 2).quantize(torch.tensor([-0.01, -0.0])).signbit().any()


def test_a_scale_outside_keeps_its_gradient():
    x, scale = torch.tensor([0.3, 9.0]), torch.tensor(0.5, requires_grad=True)
    (FixedPoint(4).quantize(x / scale) * scale).sum().backward()
    # d/ds of s * round(x / s) is round(x / s) - x / s; the saturated element has its level, 7
    torch.testing.assert_close(scale.grad, torch.tensor(1 - 0.6 + 7))


def test_more_than_32_bits_have_a_width_but_no_arithmetic():
    wide = FixedPoint(64)
    assert (wide.bits, wide.name) == (64, "int64")
    calls = [(wide.quantize, torch.ones(1)), (wide.encode, torch.ones(1)), (wide.decode, torch.tensor([1]))]
    for method, argument in calls:
        with pytest.raises(ValueError, match="bits must be at most 32 to quantize, encode or decode, got 64"):
            method(argument)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": 0}, ValueError, r"bits must be in \[1, 64\], got 0"),
        ({"bits": 65}, ValueError, r"bits must be in \[1, 64\], got 65"),
        ({"bits": 8.0}, TypeError, r"bits must be an integer in \[1, 64\], got 8.0"),
        ({"bits": True}, TypeError, r"bits must be an integer in \[1, 64\], got True"),
        ({"bits": 8, "scale": 0.0}, ValueError, r"scale must be in \[2\*\*-100, 2\*\*100\], got 0.0"),
        ({"bits": 8, "scale": float("nan")}, ValueError, "got nan"),
        ({"bits": 8, "scale": "a"}, TypeError, "scale must be a positive number, got 'a'"),
        ({"bits": 8, "fraction_bits": 101}, ValueError, r"fraction_bits must be in \[-100, 100\], got 101"),
        ({"bits": 8, "fraction_bits": 1, "scale": 0.5}, ValueError, "fraction_bits or scale, not both"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        FixedPoint(**arguments)
