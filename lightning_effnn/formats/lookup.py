"""Finding a format: by a tensor's dtype, by its name."""

from __future__ import annotations

import difflib
import re

import torch

from lightning_effnn.formats.base import NumberFormat
from lightning_effnn.formats.binary import Binary
from lightning_effnn.formats.fixed import FixedPoint
from lightning_effnn.formats.floating import BF16, FP8_E4M3, FP8_E5M2, FP16, FP32, FP64, TF32, FloatingPoint
from lightning_effnn.formats.power_of_two import PowerOfTwo
from lightning_effnn.formats.recentralized import RecentralizedPowerOfTwo
from lightning_effnn.formats.ternary import Ternary

_OF_DTYPE: dict[torch.dtype, NumberFormat] = {
    torch.float64: FP64,
    torch.float32: FP32,
    torch.bfloat16: BF16,
    torch.float16: FP16,
    torch.float8_e4m3fn: FP8_E4M3,
    torch.float8_e5m2: FP8_E5M2,
    torch.bool: FixedPoint(1, signed=False),
    torch.int8: FixedPoint(8),
    torch.int16: FixedPoint(16),
    torch.int32: FixedPoint(32),
    torch.int64: FixedPoint(64),
    torch.uint8: FixedPoint(8, signed=False),
    torch.uint16: FixedPoint(16, signed=False),
    torch.uint32: FixedPoint(32, signed=False),
    torch.uint64: FixedPoint(64, signed=False),
}

_BY_NAME: tuple[NumberFormat, ...] = (
    *(FP64, FP32, TF32, BF16, FP16, FP8_E4M3, FP8_E5M2),
    FloatingPoint(4, 3),  # its name follows no pattern: FP8_E4M3 took the plain one
    *(Binary(), Ternary()),
)
_NAMED = {str(number_format): number_format for number_format in _BY_NAME}
_INTEGER = re.compile(r"(u?)int(\d{1,3})")
_POWER = re.compile(r"pow2_(\d{1,3})")
_FOCUS = re.compile(r"focus(\d{1,3})")
_FLOAT = re.compile(r"fp(\d{1,3})_e(\d{1,3})m(\d{1,3})(fn)?")


def format_of(dtype: torch.dtype) -> NumberFormat:
    """Return the format in which a tensor of ``dtype`` stores its numbers.

    Booleans count as the one bit they need, though torch keeps a byte for each.

    Args:
        dtype: a real dtype of torch.

    Raises:
        TypeError: if ``dtype`` is not a dtype.
        ValueError: if there is no format for it (complex, quantised and unusual 8-bit dtypes).

    Source: https://pytorch.org/docs/stable/tensor_attributes.html#torch.dtype

    >>> str(format_of(torch.bfloat16)), str(format_of(torch.int64)), str(format_of(torch.bool))
    ('bf16', 'int64', 'uint1')
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if dtype not in _OF_DTYPE:
        accepted = ", ".join(str(known) for known in _OF_DTYPE)
        raise ValueError(f"dtype must be one of {accepted}, got {dtype}")
    return _OF_DTYPE[dtype]


def parse_format(text: str) -> NumberFormat:
    """Return the format called ``text``, with scale 1 where it has a scale.

    ``parse_format(str(f)) == f`` for every format whose scale, threshold and exponents are the defaults.
    Upper and lower case are the same.

    Args:
        text: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"bf16"``, ``"fp16"``, ``"fp8_e4m3"``, ``"fp8_e5m2"``,
            ``"binary"``, ``"ternary"``, ``"int<bits>"``, ``"uint<bits>"``, ``"pow2_<bits>"``,
            ``"focus<bits>"``, or ``"fp<bits>_e<exponent bits>m<mantissa bits>"``, with ``"fn"`` behind it for no
            infinities.

    Raises:
        TypeError: if ``text`` is not a string.
        ValueError: if there is no such format; the message lists the names and gives the nearest.

    >>> parse_format("int8")
    FixedPoint(bits=8, scale=1.0, signed=True)
    >>> parse_format("pow2_4")
    PowerOfTwo(bits=4, max_exponent=0)
    >>> parse_format("fp8_e4")
    Traceback (most recent call last):
    ...
    ValueError: text must be one of fp64, fp32, ..., pow2_<bits>, ..., got 'fp8_e4'; did you mean 'fp8_e4m3'?
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {text!r}")
    name = text.strip().lower()
    if name in _NAMED:
        return _NAMED[name]
    if match := _INTEGER.fullmatch(name):
        return FixedPoint(int(match[2]), signed=not match[1])
    if match := _POWER.fullmatch(name):
        return PowerOfTwo(int(match[1]))
    if match := _FOCUS.fullmatch(name):
        return RecentralizedPowerOfTwo(int(match[1]))
    if match := _FLOAT.fullmatch(name):
        bits, exponent, mantissa = int(match[1]), int(match[2]), int(match[3])
        padding = bits - 1 - exponent - mantissa
        return FloatingPoint(exponent, mantissa, infinities=not match[4], padding_bits=padding)
    patterns = ["int<bits>", "uint<bits>", "pow2_<bits>", "focus<bits>", "fp<bits>_e<bits>m<bits>[fn]"]
    known = [*_NAMED, "int4", "int8", "int16", "uint4", "uint8", "uint16", "pow2_4", "pow2_8", "focus5"]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    accepted = ", ".join([*_NAMED, *patterns])
    raise ValueError(f"text must be one of {accepted}, got {text!r}; did you mean {nearest!r}?")
