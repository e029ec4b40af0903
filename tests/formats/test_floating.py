"""Floating point against torch's own casts and Python's exact arithmetic."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_effnn.formats import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FP64,
    TF32,
    FloatingPoint,
)

CASTS = [
    (BF16, torch.bfloat16, torch.int16),
    (FP16, torch.float16, torch.int16),
    (FP8_E5M2, torch.float8_e5m2, torch.uint8),
    (FP8_E4M3, torch.float8_e4m3fn, torch.uint8),
    (FP32, torch.float32, torch.int32),
]
each_cast = pytest.mark.parametrize(("fmt", "dtype", "view"), CASTS, ids=[str(c[0]) for c in CASTS])


def every_upper_half() -> torch.Tensor:
    """float32 numbers with every upper 16 bits, on, just beside and between bfloat16 numbers."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    return torch.cat([(upper | low).view(torch.float32) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])


@each_cast
def test_rounding_and_codes_are_those_of_the_torch_cast(fmt, dtype, view):
    x = every_upper_half()
    x = x[~x.isnan()]
    if fmt == FP8_E4M3:
        x = x[x.abs() <= 464]  # torch's cast overflows to NaN where ours saturates
    cast = x.to(dtype)
    assert torch.equal(fmt.quantize(x).view(torch.int32), cast.to(torch.float32).view(torch.int32))
    codes = cast.view(view).long() & (2**fmt.bits - 1)
    assert torch.equal(fmt.encode(x).long(), codes)


@each_cast
def test_every_code_decodes_to_what_torch_reads_from_it(fmt, dtype, view):
    codes = torch.arange(2 ** min(fmt.bits, 16)) << max(0, fmt.bits - 16)
    bits = 8 * view.itemsize
    signed = codes if view == torch.uint8 else torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
    expected = signed.to(view).view(dtype).to(torch.float32)
    assert torch.equal(expected.isnan(), fmt.decode(codes).isnan())
    numbers = ~expected.isnan()
    assert torch.equal(fmt.decode(codes)[numbers].view(torch.int32), expected[numbers].view(torch.int32))


@pytest.mark.parametrize(("fmt", "dtype"), [c[:2] for c in CASTS], ids=[str(c[0]) for c in CASTS])
def test_float64_is_rounded_once(fmt, dtype):
    # just above a tie by less than float32 can tell: through float32 it would fall to the even side
    x = torch.tensor([1 + 2.0 ** -(fmt.mantissa_bits + 1) + 2.0**-50], dtype=torch.float64)
    assert fmt.quantize(x).item() == 1 + 2.0**-fmt.mantissa_bits


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    layout=st.tuples(st.integers(2, 10), st.integers(1, 52), st.just(True))
    | st.tuples(st.integers(2, 7), st.integers(1, 52), st.just(False)),
)
@settings(max_examples=400)
def test_any_layout_rounds_as_exact_arithmetic_does(value, layout):
    fmt = FloatingPoint(layout[0], layout[1], infinities=layout[2])
    exponent = max(torch.frexp(torch.tensor(value, dtype=torch.float64)).exponent.item() - 1, 1 - fmt.bias)
    step = Fraction(2) ** (exponent - fmt.mantissa_bits)
    exact = round(Fraction(value) / step) * step  # Python rounds ties to even
    if abs(exact) > Fraction(fmt.max_value):
        largest = float("inf") if fmt.infinities else fmt.max_value
        expected = largest if value > 0 else -largest
    else:
        expected = float(exact)
    assert fmt.quantize(torch.tensor(value, dtype=torch.float64)).item() == expected


def test_e4m3_saturates_where_torch_gives_nan():
    x = torch.tensor([464.0, 465.0, 1e30, torch.inf, -torch.inf], requires_grad=True)
    q = FP8_E4M3.quantize(x)
    q.sum().backward()
    assert q.tolist() == [448.0, 448.0, 448.0, 448.0, -448.0]
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_formats_with_infinities_overflow_to_them():
    x = torch.tensor([65519.0, 65520.0, -torch.inf], requires_grad=True)
    assert FP16.quantize(x).tolist() == [65504.0, torch.inf, -torch.inf]
    FP16.quantize(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_the_sign_of_zero_and_of_nan_survives():
    x = torch.tensor([0.0, -0.0, torch.nan, -torch.nan, -1e-40])
    for fmt in (FP16, BF16, FP8_E4M3, FP8_E5M2, TF32, FP32, FP64):
        assert fmt.decode(fmt.encode(x)).signbit().tolist() == [False, True, False, True, True]


def test_tf32_is_stored_in_32_bits_of_which_the_last_13_are_zero():
    x = torch.tensor([1.2345678, -3.4e38, 1e-42])
    assert (TF32.bits, TF32.mantissa_bits) == (32, 10)
    assert torch.equal(TF32.encode(x).long() % 2**13, torch.zeros(3, dtype=torch.int64))
    assert TF32.encode(torch.tensor([1.0])).item() == FP32.encode(torch.tensor([1.0])).item()
    with pytest.raises(ValueError, match="be one that encode gives for tf32, got 1"):
        TF32.decode(torch.tensor([1]))


def test_a_dtype_that_the_format_contains_passes_through():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn):
        x = torch.ones(2, dtype=dtype)
        assert FP32.quantize(x) is x
    for fmt, dtype in [(FP16, torch.bfloat16), (BF16, torch.float16), (FP32, torch.float64)]:
        x = torch.ones(2, dtype=dtype)
        assert fmt.quantize(x) is not x


def test_fp64_codes_are_its_bit_patterns():
    x = torch.tensor([-1.5, 5e-324, torch.inf], dtype=torch.float64)
    assert torch.equal(FP64.encode(x).view(torch.int64), x.view(torch.int64))
    assert torch.equal(FP64.decode(FP64.encode(x)), x)


@pytest.mark.parametrize(
    ("fmt", "largest", "least_normal"),
    [
        (FP8_E4M3, 448.0, 2.0**-6),
        (FP8_E5M2, 57344.0, 2.0**-14),
        (FP16, torch.finfo(torch.float16).max, torch.finfo(torch.float16).tiny),
        (BF16, torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).tiny),
        (FP32, torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny),
        (FP64, torch.finfo(torch.float64).max, torch.finfo(torch.float64).tiny),
    ],
    ids=str,
)
def test_the_limits_are_those_of_the_standards(fmt, largest, least_normal):
    assert (fmt.max_value, fmt.min_normal) == (largest, least_normal)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exponent_bits": 1, "mantissa_bits": 2}, r"exponent_bits must be in \[2, 11\], got 1"),
        ({"exponent_bits": 8, "mantissa_bits": 2, "infinities": False}, r"exponent_bits must be in \[2, 7\]"),
        ({"exponent_bits": 5, "mantissa_bits": 0}, r"mantissa_bits must be in \[1, 52\], got 0"),
        ({"exponent_bits": 5, "mantissa_bits": 2, "padding_bits": -1}, r"padding_bits must be in \[0, 32\]"),
        ({"exponent_bits": 11, "mantissa_bits": 52, "padding_bits": 1}, r"padding_bits must be in \[0, 0\]"),
    ],
)
def test_an_impossible_layout_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloatingPoint(**arguments)
