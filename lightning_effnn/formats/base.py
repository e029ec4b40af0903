"""What every number format can do: quantise, encode to integer codes, decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from lightning_effnn.formats import _checks
from lightning_effnn.formats._carrier import carried
from lightning_effnn.formats._straight_through import straight_through

FormatKind = Literal["float", "fixed", "binary", "ternary", "power_of_two", "recentralized"]
"""What arithmetic a format needs; multiplying by ``"power_of_two"`` is a shift, by ``"recentralized"`` two
shifts and an addition."""

_Format = TypeVar("_Format", bound="NumberFormat")


@dataclass(frozen=True)
class NumberFormat(ABC):
    r"""How one number is stored: a finite set of levels, each with an integer code.

    With :math:`D` the map from codes to levels (``decode``) and :math:`E` that from numbers to the code
    of the nearest level (``encode``), every format keeps three laws, bit for bit:

    .. math:: Q(x) = D(E(x)), \qquad E(D(c)) = c, \qquad Q(Q(x)) = Q(x)

    for finite :math:`x` and valid codes :math:`c`. ``quantize`` (:math:`Q`) answers in the dtype of its
    input. A dtype too coarse for the levels (float32 for more than 24 bits, bfloat16 for more than 8)
    holds them rounded: the first law then reads ``decode(encode(x)).to(x.dtype)``, and the third is only
    promised for dtypes that hold every level.

    Formats are values: immutable, hashable, equal when their parameters are equal. A new one subclasses
    this, is a frozen dataclass, sets ``kind``, and defines ``name``, ``_to_codes`` and ``_from_codes``;
    the other underscored methods are there to be overridden where the default does not fit. They are
    given float32, or float64 if the caller's tensor is float64, and int64 codes.

    Attributes:
        bits: what one stored number takes.
        kind: what arithmetic it needs, one of :data:`FormatKind`.
    """

    bits: int
    kind: ClassVar[FormatKind]
    _stores_nan: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name such as ``"int8"``. It tells storage and arithmetic, not the scale."""

    def __str__(self) -> str:
        return self.name

    @property
    def code_dtype(self) -> torch.dtype:
        """The smallest integer dtype with full operator support that holds [0, 2**bits).

        So 16-bit codes are int32 (torch's uint16 lacks most operators), 32-bit ones int64; only 64-bit
        codes are unsigned.
        """
        holds = ((8, torch.uint8), (15, torch.int16), (31, torch.int32), (63, torch.int64))
        return next((dtype for most, dtype in holds if self.bits <= most), torch.uint64)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the nearest level of every element, with a straight-through gradient.

        The gradient is the identity where rounding chose the level and zero where saturation did (more
        than half a step outside the range, unless the format says otherwise). Infinities saturate in
        formats that have none. NaN stays NaN in every format: hiding it would hide a diverging run.

        Args:
            x: floating-point tensor of any shape.

        Returns:
            Tensor of the shape, dtype and device of ``x``.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.

        Source: Bengio, Léonard and Courville (2013), arXiv 1308.3432, for the gradient.

        >>> from lightning_effnn.formats import FixedPoint
        >>> x = torch.tensor([0.3, -1.2, 900.0], requires_grad=True)
        >>> FixedPoint(8, fraction_bits=1).quantize(x).tolist()
        [0.5, -1.0, 63.5]
        >>> FixedPoint(8, fraction_bits=1).quantize(x).sum().backward()
        >>> x.grad.tolist()
        [1.0, 1.0, 0.0]
        """
        _checks.floating("x", x)
        return straight_through(x, self)

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of the nearest level of every element.

        Args:
            x: floating-point tensor of any shape.

        Returns:
            Tensor of the shape of ``x`` and of dtype :attr:`code_dtype`, values in [0, 2**bits).

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.
            ValueError: if ``x`` holds NaN and the format has no code for it.

        >>> from lightning_effnn.formats import FixedPoint
        >>> FixedPoint(8, fraction_bits=1).encode(torch.tensor([0.5, -0.5]))
        tensor([  1, 255], dtype=torch.uint8)
        """
        _checks.floating("x", x)
        x = carried(x.detach())
        if not self._stores_nan and bool(x.isnan().any()):
            raise ValueError(f"x must not hold NaN, for which {self.name} has no code")
        codes = self._to_codes(x)
        # int64 keeps bit 63 in its sign, so the widest codes are reinterpreted, not converted.
        return codes.view(torch.uint64) if self.bits == 64 else codes.to(self.code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the levels that ``codes`` stand for.

        Args:
            codes: integer tensor of any shape, values in [0, 2**bits).

        Returns:
            float32 tensor of the shape of ``codes``; float64 where float32 cannot tell the levels apart.

        Raises:
            TypeError: if ``codes`` is not an integer tensor.
            ValueError: if a code is out of range or not one that ``encode`` gives.

        >>> from lightning_effnn.formats import FixedPoint
        >>> FixedPoint(8, fraction_bits=1).decode(torch.tensor([1, 255]))
        tensor([ 0.5000, -0.5000])
        """
        if not isinstance(codes, Tensor):
            raise TypeError(f"codes must be an integer tensor, got {type(codes).__name__}")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TypeError(f"codes must be an integer tensor, got dtype {codes.dtype}")
        if self.bits == 64 and codes.dtype == torch.uint64:
            return self._from_codes(codes.view(torch.int64))
        wide = codes.to(torch.int64)  # a uint64 beyond 2**63 turns negative and is refused below
        wrong = (wide < 0) | (wide > (1 << min(self.bits, 63)) - 1)
        refused = self._refused(wide)
        wrong = wrong if refused is None else wrong | refused
        if bool(wrong.any()):
            value = int(wide[wrong][0])
            hint = "" if refused is None else " and be one that encode gives"
            raise ValueError(f"codes must be in [0, 2**{self.bits}){hint} for {self.name}, got {value}")
        return self._from_codes(wide)

    def fit(self: _Format, x: Tensor) -> _Format:
        """Return this format with its scale chosen for ``x``; itself where it has no scale.

        Args:
            x: floating-point tensor of any shape, finite, not empty. Reading it waits for its device.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.
            ValueError: if ``x`` is empty or not finite.

        >>> from lightning_effnn.formats import BF16, FixedPoint
        >>> FixedPoint(8).fit(torch.tensor([-254.0, 3.0])).scale, BF16.fit(torch.ones(2)) == BF16
        (2.0, True)
        """
        _checks.magnitudes(x)
        return self

    def _round(self, x: Tensor) -> Tensor:
        """Nearest levels in float32 or float64, NaN kept; override for speed only."""
        missing = x.isnan()
        levels = self._from_codes(self._to_codes(x.masked_fill(missing, 0.0)))
        return levels.masked_fill(missing, torch.nan)

    def _inside(self, x: Tensor) -> Tensor | None:
        """Where the gradient passes; ``None`` for everywhere."""
        return None

    def _refused(self, codes: Tensor) -> Tensor | None:
        """Codes in range that ``encode`` never gives; ``None`` if there are none."""
        return None

    @abstractmethod
    def _to_codes(self, x: Tensor) -> Tensor:
        """Codes of the nearest levels, int64."""

    @abstractmethod
    def _from_codes(self, codes: Tensor) -> Tensor:
        """Levels of valid int64 codes, float32 or float64, never -0.0 where there is one zero code."""
