"""How a number is stored: the formats, and how to find one.

A format has ``bits``, ``name`` and ``kind``; it quantises with a straight-through gradient, encodes to
integer codes and decodes them exactly. It needs nothing else of this library.

>>> import torch
>>> from lightning_effnn.formats import parse_format
>>> weights = torch.tensor([0.5, -0.26, 0.01])
>>> for name in ("int4", "pow2_4", "ternary"):
...     number_format = parse_format(name).fit(weights)
...     codes = number_format.encode(weights)
...     print(number_format, codes.tolist(), number_format.decode(codes).tolist())
int4 [7, 12, 0] [0.5, -0.28571..., 0.0]
pow2_4 [7, 14, 1] [0.5, -0.25, 0.0078125]
ternary [1, 3, 0] [0.37999..., -0.37999..., 0.0]
"""

from lightning_effnn.formats.base import FormatKind, NumberFormat
from lightning_effnn.formats.binary import Binary
from lightning_effnn.formats.declared import declare_format, declared_formats, forget_formats
from lightning_effnn.formats.fixed import FixedPoint
from lightning_effnn.formats.floating import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FP64,
    TF32,
    FloatingPoint,
)
from lightning_effnn.formats.lookup import format_of, parse_format
from lightning_effnn.formats.power_of_two import PowerOfTwo
from lightning_effnn.formats.recentralized import RecentralizedPowerOfTwo
from lightning_effnn.formats.ternary import Ternary

__all__ = [
    "BF16",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP16",
    "FP32",
    "FP64",
    "TF32",
    "Binary",
    "FixedPoint",
    "FloatingPoint",
    "FormatKind",
    "NumberFormat",
    "PowerOfTwo",
    "RecentralizedPowerOfTwo",
    "Ternary",
    "declare_format",
    "declared_formats",
    "forget_formats",
    "format_of",
    "parse_format",
]
