"""Formats by dtype and by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_effnn.formats import (
    FP8_E4M3,
    Binary,
    FixedPoint,
    FloatingPoint,
    PowerOfTwo,
    Ternary,
    format_of,
    parse_format,
)

DTYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.float8_e5m2: "fp8_e5m2",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.uint16: "uint16",
    torch.uint32: "uint32",
    torch.uint64: "uint64",
}


@pytest.mark.parametrize(("dtype", "name"), DTYPES.items(), ids=str)
def test_a_dtype_has_the_format_of_its_name_and_width(dtype, name):
    assert format_of(dtype).name == name
    assert format_of(dtype).bits == 8 * dtype.itemsize
    assert parse_format(name) == format_of(dtype)


def test_a_boolean_is_one_bit():
    assert format_of(torch.bool) == FixedPoint(1, signed=False)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"dtype must be one of torch.float64, .*, got torch.complex64"):
        format_of(torch.complex64)
    with pytest.raises(TypeError, match=r"dtype must be a torch.dtype, got 'float32'"):
        format_of("float32")


named = (
    st.builds(FixedPoint, st.integers(1, 64), signed=st.booleans())
    | st.builds(PowerOfTwo, st.integers(2, 7))
    | st.builds(FloatingPoint, st.integers(2, 11), st.integers(1, 49), padding_bits=st.integers(0, 3))
    | st.builds(FloatingPoint, st.integers(2, 7), st.integers(1, 52), infinities=st.booleans())
    | st.sampled_from([Binary(), Ternary(), PowerOfTwo(8)])
)


@given(named)
def test_the_name_of_a_format_finds_it_again(fmt):
    assert parse_format(str(fmt)) == fmt


def test_the_two_8_bit_formats_with_four_exponent_bits_have_different_names():
    assert parse_format("fp8_e4m3") == parse_format("fp8_e4m3fn") == FP8_E4M3
    assert parse_format("fp8_e4m3_ieee") == FloatingPoint(4, 3)


def test_case_and_blanks_around_do_not_matter():
    assert parse_format(" INT8 ") == FixedPoint(8)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("int-8", "int8"),
        ("terniary", "ternary"),
        ("bfloat16", "bf16"),
        ("fp8_e4m", "fp8_e4m3"),
        ("pow4", "pow2_4"),
    ],
)
def test_an_unknown_name_is_answered_with_all_names_and_the_nearest(text, nearest):
    with pytest.raises(ValueError, match=rf"one of fp64, .*pow2_<bits>.*got '{text}'; did you mean '{nearest}'"):
        parse_format(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int99", r"bits must be in \[1, 64\], got 99"),
        ("pow2_1", r"bits must be in \[2, 8\], got 1"),
        ("fp8_e5m5", r"padding_bits must be in \[0, 32\], got -3"),
        ("", "did you mean"),
    ],
)
def test_a_known_name_with_an_impossible_width_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_format(text)


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match=r"text must be a string, got 8"):
        parse_format(8)
