"""Recentralised powers of two: two means, and powers of two around each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from lightning_effnn.formats import _checks
from lightning_effnn.formats._carrier import carried
from lightning_effnn.formats._nearest import Cells, Rounder, Search, find_nearest
from lightning_effnn.formats.base import FormatKind, NumberFormat

MIN_BITS, MAX_BITS = 3, 7
"""Fewer bits leave no exponent; more would need exponents that float32 cannot add to a mean exactly."""
MAX_SPAN = 20
"""Most binary places between a mean and a level added to it. The sum is then exact in float32, and far
enough from its neighbours to be found again after any scaling."""
_WIDEST_SHAPE = 2.0**-8
"""Least sigma over the larger mean that :meth:`RecentralizedPowerOfTwo.fit` chooses."""

_Levels = tuple[tuple[float, ...], tuple[int, ...]]


@dataclass(frozen=True)
class RecentralizedPowerOfTwo(NumberFormat):
    r"""Zero, and around a negative and a positive mean zero and signed powers of two.

    .. math:: \{0\} \cup \{\alpha (\mu_c + \sigma l) : c \in \{-, +\},\; l \in \{0\} \cup \{\pm 2^e\}\},
        \qquad e_{max} - n < e \le e_{max}, \quad n = 2^{b-3}

    so that 5 bits have 2 * (2 * 4 + 1) = 18 levels and the zero of pruned weights. The two means and
    :math:`\sigma` are powers of two: multiplying by a level is two shifts and an addition, exactly. The
    scale :math:`\alpha` is one multiplication a layer or output channel after the sum; it folds into the
    scale of the next layer or normalisation.

    :meth:`quantize` and :meth:`encode` take the nearest of all levels, of either mean; a number midway
    between two goes to the larger one (with :math:`\alpha \ne 1`, up to a unit in the last place).
    :meth:`quantize_assigned` and :meth:`encode_assigned` take the nearest level of the mean they are told.
    The gradient passes where :math:`\mu_- - 1.5 \sigma 2^{e_{max}} < x / \alpha < \mu_+ + 1.5 \sigma 2^{e_{max}}`.

    From the top a code is the component (0 negative, 1 positive), the sign, and 0 for the mean itself or
    :math:`e - e_{max} + n` for a power. The mean has its sign bit set, for code 0 is the pruned zero. Where
    several codes mean the same number (the lobes overlap, or a mean and a power cancel) only the smallest
    exists; ``encode`` gives it and ``decode`` refuses the others.

    Args:
        bits: 3 to 7 in total.
        mean_negative: :math:`\mu_-`, minus a power of two.
        mean_positive: :math:`\mu_+`, a power of two.
        sigma: :math:`\sigma`, a power of two.
        max_exponent: :math:`e_{max}`.
        scale: :math:`\alpha`, positive.

    Raises:
        TypeError: if an argument is not a number, or ``bits`` or ``max_exponent`` not an integer.
        ValueError: if one is out of range; if a power added to a mean is more than 20 binary places away
            from it; if a power times the scale is outside [2**-100, 2**100].

    Source: Zhao et al. (2019), "Focused Quantization for Sparse CNNs", arXiv 1903.03046, section 3.2. The
    paper scales :math:`\sigma l` alone; scaling the sum keeps the two shifts exact, and lets the powers of
    two of the means come closer to the means they stand for.

    >>> focus5 = RecentralizedPowerOfTwo(5, mean_negative=-0.5, mean_positive=0.25, sigma=0.125)
    >>> focus5.quantize(torch.tensor([-0.49, 0.3, 0.37, 0.01]))
    tensor([-0.4844,  0.3125,  0.3750,  0.0000])
    >>> str(focus5), len(focus5.levels), focus5.exponents
    ('focus5', 19, range(-3, 1))
    """

    mean_negative: float = -1.0
    mean_positive: float = 1.0
    sigma: float = 0.25
    max_exponent: int = 0
    scale: float = 1.0
    kind: ClassVar[FormatKind] = "recentralized"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", _checks.integer("bits", self.bits, MIN_BITS, MAX_BITS))
        object.__setattr__(self, "max_exponent", _checks.integer("max_exponent", self.max_exponent, -200, 200))
        object.__setattr__(self, "scale", _checks.scale("scale", self.scale))
        for name, sign in (("mean_negative", -1), ("mean_positive", 1), ("sigma", 1)):
            object.__setattr__(self, name, _power_of_two(name, getattr(self, name), sign))
        sigma = _exponent(self.sigma)
        powers = (sigma + self.exponents[0], sigma + self.max_exponent)
        means = (_exponent(self.mean_negative), _exponent(self.mean_positive))
        span = max(abs(mean - power) for mean in means for power in powers)
        if span > MAX_SPAN:
            raise ValueError(
                f"sigma * 2**e must be within {MAX_SPAN} binary places of both means for every exponent e in "
                f"{self.exponents}, got {span} places with sigma={self.sigma}, means {self.mean_negative} and "
                f"{self.mean_positive}"
            )
        least, most = self.scale * 2.0 ** min(*powers, *means), self.scale * 2.0 ** max(*powers, *means)
        if not _checks.MIN_SCALE <= least <= most <= _checks.MAX_SCALE:
            raise ValueError(f"all powers times scale must be in [2**-100, 2**100], got {least} to {most}")

    @property
    def name(self) -> str:
        """``"focus5"``; means, sigma and scale are not part of it."""
        return f"focus{self.bits}"

    @property
    def exponents(self) -> range:
        """The exponents there are, smallest first."""
        return range(self.max_exponent - (1 << (self.bits - 3)) + 1, self.max_exponent + 1)

    @property
    def levels(self) -> tuple[float, ...]:
        """All levels in rising order, as float32 holds them; the pruned zero is one."""
        return tuple(_checks.float32(self.scale * value) for value in _distinct(self, -1)[0])

    def fit(self, x: Tensor) -> RecentralizedPowerOfTwo:
        r"""Return this format with the powers of two nearest to the moments of each sign of ``x``.

        Means of negative and positive elements, :math:`\sigma` from the pooled deviation around them (at
        least 1/256 of the larger mean). The bits, ``max_exponent`` and ``scale`` stay; zeros do not count. A
        sign without elements mirrors the other; a tensor of zeros keeps all. What fits a mixture and searches
        for the least error is ``compression.focus``.

        Args:
            x: floating-point tensor of any shape, finite, not empty.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor.
            ValueError: if ``x`` is empty, not finite, or its magnitudes are beyond the accepted powers.

        >>> RecentralizedPowerOfTwo(5).fit(torch.tensor([-0.6, -0.4, 0.0, 0.9, 1.1]))
        RecentralizedPowerOfTwo(bits=5, mean_negative=-0.5, mean_positive=1.0, sigma=0.125, max_exponent=0, scale=1.0)
        """
        _checks.magnitudes(x)
        values = x.detach().double().flatten() / self.scale
        lobes = [lobe for lobe in (values[values < 0], values[values > 0]) if lobe.numel()]
        if not lobes:
            return self
        means = [nearest_power_of_two(abs(lobe.mean().item())) for lobe in lobes]
        squares = sum(float((lobe - lobe.mean()).square().sum()) for lobe in lobes)
        deviation = math.sqrt(squares / sum(lobe.numel() for lobe in lobes))
        sigma = nearest_power_of_two(max(deviation, _WIDEST_SHAPE * max(means)))
        return replace(self, mean_negative=-means[0], mean_positive=means[-1], sigma=sigma)

    def encode_assigned(self, x: Tensor, component: Tensor) -> Tensor:
        """Return the code of the nearest level among those of the mean each element is assigned to.

        Zeros get the code of the pruned zero whatever they are assigned to.

        Args:
            x: floating-point tensor of any shape.
            component: of the same shape: 0 or ``False`` for the negative mean, 1 or ``True`` for the positive.

        Returns:
            Tensor of the shape of ``x`` and of dtype :attr:`code_dtype`.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor, or ``component`` not a tensor of integers or bools.
            ValueError: if the shapes differ, or ``x`` holds NaN.

        >>> focus3 = RecentralizedPowerOfTwo(3, sigma=0.5)
        >>> focus3.encode_assigned(torch.tensor([0.1, 0.1, 0.0]), torch.tensor([0, 1, 1]))
        tensor([1, 7, 0], dtype=torch.uint8)
        """
        _checks.floating("x", x)
        x = carried(x.detach())
        if bool(x.isnan().any()):
            raise ValueError(f"x must not hold NaN, for which {self.name} has no code")
        return self._assigned(x, component).to(self.code_dtype)

    def quantize_assigned(self, x: Tensor, component: Tensor) -> Tensor:
        """Return the levels of :meth:`encode_assigned` in the dtype of ``x``, without a gradient; NaN stays.

        Args and errors are those of :meth:`encode_assigned`, but for NaN.

        >>> RecentralizedPowerOfTwo(3, sigma=0.5).quantize_assigned(torch.tensor([0.1, 0.1]), torch.tensor([0, 1]))
        tensor([-0.5000,  0.5000])
        """
        _checks.floating("x", x)
        wide = carried(x.detach())
        levels = self._from_codes(self._assigned(wide, component))
        return torch.where(wide.isnan(), wide, levels).to(x.dtype)

    def _assigned(self, x: Tensor, component: Tensor) -> Tensor:
        if not isinstance(component, Tensor) or component.is_floating_point() or component.is_complex():
            raise TypeError("component must be a tensor of bools or integers 0 and 1")
        if component.shape != x.shape:
            raise ValueError(f"component must have the shape of x, {tuple(x.shape)}, got {tuple(component.shape)}")
        codes = torch.where(component == 1, self._nearest(x, 1, codes=True), self._nearest(x, 0, codes=True))
        return codes.masked_fill(x == 0, 0)

    def _inside(self, x: Tensor) -> Tensor:
        reach = 1.5 * self.sigma * 2.0**self.max_exponent
        return (x > self.scale * (self.mean_negative - reach)) & (x < self.scale * (self.mean_positive + reach))

    def _round(self, x: Tensor) -> Tensor:
        return self._nearest(x, -1, codes=False)

    def _to_codes(self, x: Tensor) -> Tensor:
        return self._nearest(x, -1, codes=True)

    def rounder(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Rounder:
        """Return what gives float32 levels as :meth:`quantize` does, its table made once: for loops, without gradients.

        Args:
            device, dtype: of the tensors to come; one table serves every dtype.

        >>> rounder = RecentralizedPowerOfTwo(5).rounder(torch.device("cpu"))
        >>> rounder(torch.tensor([-0.9, 0.1]))
        tensor([-0.8750,  0.0000])
        """
        return self._lookup(-1, False, device)

    def _nearest(self, x: Tensor, component: int, codes: bool) -> Tensor:
        """Codes or levels nearest to ``x`` among those of one mean, or of both and zero if it is -1.

        NaN gets code 0, or stays NaN.
        """
        return self._lookup(component, codes, x.device)(x)

    def _lookup(self, component: int, codes: bool, device: torch.device) -> Cells | Search:
        values, names = _distinct(self, component)
        if codes:
            answers = torch.tensor([*names, 0], device=device)
        else:
            answers = _float32([self.scale * value for value in values] + [math.nan], device)
        # Levels are multiples of the smallest power, so what separates them is a multiple of half of it.
        return find_nearest(values, 2.0 ** (self._smallest - 1), self.scale, answers)

    @property
    def _smallest(self) -> int:
        """Exponent of the smallest power of two that a level is made of."""
        shape = _exponent(self.sigma) + self.exponents[0]
        return min(shape, _exponent(self.mean_negative), _exponent(self.mean_positive))

    def _from_codes(self, codes: Tensor) -> Tensor:
        levels = [0.0] * (1 << self.bits)
        for value, code in zip(*_distinct(self, -1), strict=True):
            levels[code] = self.scale * value
        return _float32(levels, codes.device)[codes]

    def _refused(self, codes: Tensor) -> Tensor:
        names = _distinct(self, -1)[1]
        refused = torch.tensor([code not in names for code in range(1 << self.bits)], device=codes.device)
        return refused[codes.clamp(0, (1 << self.bits) - 1)]


def _float32(values: list[float], device: torch.device) -> Tensor:
    """Numbers rounded on the host, for not every device has float64."""
    return torch.tensor(values, dtype=torch.float64, device="cpu").float().to(device)


def _distinct(number_format: RecentralizedPowerOfTwo, component: int) -> _Levels:
    if torch.compiler.is_compiling():  # the compiler warns of caches; it asks but once anyway
        return _find_distinct(number_format, component)
    return _cached_distinct(number_format, component)


def _find_distinct(number_format: RecentralizedPowerOfTwo, component: int) -> _Levels:
    """Levels before scaling in rising order, and their codes: of one component, or of all if it is -1.

    All sums are exact. The smallest code of a value stands for it, also among those of one component.
    """
    code_of = {0.0: 0}
    members: list[float] = [0.0] if component < 0 else []
    top, sign_bit = 1 << (number_format.bits - 1), 1 << (number_format.bits - 2)
    for owner, mean in enumerate((number_format.mean_negative, number_format.mean_positive)):
        coded = [(sign_bit, mean)]
        for place, exponent in enumerate(number_format.exponents, 1):
            step = number_format.sigma * 2.0**exponent
            coded += [(place, mean + step), (sign_bit + place, mean - step)]
        for code, value in coded:
            code += owner * top
            code_of[value] = min(code_of.get(value, code), code)
        if component in (-1, owner):
            members += [value for _, value in coded]
    values = tuple(sorted(set(members)))
    return values, tuple(code_of[value] for value in values)


_cached_distinct = lru_cache(maxsize=1024)(_find_distinct)


def nearest_power_of_two(value: float) -> float:
    """Return the power of two nearest to a positive number, the larger if it is midway.

    >>> nearest_power_of_two(0.37), nearest_power_of_two(0.375)
    (0.25, 0.5)
    """
    mantissa, exponent = math.frexp(value)  # mantissa in [0.5, 1)
    return math.ldexp(1.0, exponent if mantissa >= 0.75 else exponent - 1)


def _exponent(power: float) -> int:
    return math.frexp(power)[1] - 1


def _power_of_two(name: str, value: float, sign: int) -> float:
    described = "minus a power of two" if sign < 0 else "a power of two"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be {described}, got {value!r}") from None
    magnitude = sign * number
    if not (_checks.MIN_SCALE <= magnitude <= _checks.MAX_SCALE and math.frexp(magnitude)[0] == 0.5):
        raise ValueError(f"{name} must be {described} between 2**-100 and 2**100 in magnitude, got {number}")
    return number
