r"""Encodings of coordinates, as radiance fields use them, with exact derivatives of every order they have.

All take coordinates scaled to :math:`[-1, 1]` over the domain, and learn how many there are and which of them are
periodic from :meth:`Encoding.bind`. An encoding decides which frequencies a small network can represent from the start;
without one it learns low ones first, and high ones hardly ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn.pde.activations import Series
from lightning_effnn.pde.jets import Jet, compose, lookup, multiply


class Encoding(nn.Module):
    """A map from scaled coordinates ``[N, d]`` to features ``[N, features]``.

    Attributes:
        features: how many, after :meth:`bind`.
        smoothness: highest order of derivatives that are continuous enough to be used.
    """

    features: int
    smoothness: float = math.inf

    def bind(self, dim: int, periodic: Sequence[int] = ()) -> None:
        """Prepare for ``dim`` coordinates, those in ``periodic`` being the same at -1 and 1."""
        raise NotImplementedError


class PositionalEncoding(Encoding):
    r"""Sines and cosines of each coordinate, at frequencies that double.

    The frequencies are :math:`\frac{\pi}{2} 2^k` of the scaled coordinate: half a wave over the domain, one, two and so
    on. A periodic coordinate begins with a whole wave, and is left out itself.

    Args:
        num_frequencies: for each coordinate, or one number for each of them; 0 leaves a coordinate as it is.
        learnable: train the frequencies.
        coarse_to_fine: let high frequencies in one after the other, as :meth:`set_progress` says.

    Raises:
        ValueError: a negative number; in :meth:`bind`, other than one number for each coordinate, or learnable
            frequencies along a periodic one.

    Source: Mildenhall et al. (2020), "NeRF", arXiv 2003.08934, section 5.1; the mask is that of Lin et al. (2021),
    "BARF", arXiv 2104.06405, equation 14.

    >>> encoding = PositionalEncoding(3)
    >>> encoding.bind(2)
    >>> encoding(torch.zeros(5, 2)).shape  # 2 coordinates, 3 sines and 3 cosines of each
    torch.Size([5, 14])
    """

    levels: Tensor
    progress: Tensor

    def __init__(
        self, num_frequencies: int | Sequence[int] = 3, *, learnable: bool = False, coarse_to_fine: bool = False
    ) -> None:
        super().__init__()
        counts = (num_frequencies,) if isinstance(num_frequencies, int) else tuple(num_frequencies)
        if any(n < 0 for n in counts):
            raise ValueError(f"num_frequencies={num_frequencies!r}: use 0 or more")
        self.num_frequencies = num_frequencies
        self.learnable, self.coarse_to_fine = learnable, coarse_to_fine

    def bind(self, dim: int, periodic: Sequence[int] = ()) -> None:
        """Lay out the frequencies of ``dim`` coordinates."""
        n = self.num_frequencies
        counts = [n] * dim if isinstance(n, int) else list(n)
        if len(counts) != dim:
            raise ValueError(f"num_frequencies={n!r}: one number, or one for each of {dim} coordinates is needed")
        if self.learnable and periodic:
            raise ValueError("learnable frequencies don't close a periodic coordinate: use learnable=False")
        rows, levels = [], []
        for axis, count in enumerate(counts):
            base = math.pi if axis in periodic else math.pi / 2
            for k in range(max(count, 1) if axis in periodic else count):
                rows.append([base * 2**k if a == axis else 0.0 for a in range(dim)])
                levels.append(float(k))
        frequencies = torch.tensor(rows, dtype=torch.float64, device=torch.get_default_device()).reshape(len(rows), dim)
        if self.learnable:
            self.frequencies: Tensor = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies)
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("progress", torch.tensor(0.0 if self.coarse_to_fine else 1.0))
        self.plain = [axis for axis in range(dim) if axis not in periodic]
        self.features = len(self.plain) + 2 * len(rows)

    def set_progress(self, progress: float) -> None:
        """Open frequencies up to this share (0 to 1) of their levels; the one at the border partly."""
        self.progress.fill_(min(max(progress, 0.0), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``[N, d]``."""
        if not len(self.levels):
            return x
        angles = nn.functional.linear(x, self.frequencies.to(x.dtype))
        waves = torch.cat([torch.sin(angles), torch.cos(angles)], -1)
        if self.coarse_to_fine:
            opened = (self.progress * (self.levels.max() + 1) - self.levels).clamp(0, 1)
            mask = (1 - torch.cos(math.pi * opened)) / 2
            waves = waves * torch.cat([mask, mask])
        return torch.cat([x[:, self.plain], waves], -1) if self.plain else waves


class FourierFeatures(Encoding):
    """Sines and cosines of random projections of the coordinates.

    Args:
        num_features: how many projections.
        scale: standard deviation of their frequencies, in half waves over the domain.
        seed: of their choice.
        learnable: train them.

    Raises:
        ValueError: in :meth:`bind`, a periodic coordinate (random frequencies do not close).

    Source: Tancik et al. (2020), "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
    Domains", arXiv 2006.10739, section 5.

    >>> encoding = FourierFeatures(16)
    >>> encoding.bind(3)
    >>> encoding(torch.zeros(5, 3)).shape
    torch.Size([5, 35])
    """

    def __init__(self, num_features: int = 16, scale: float = 2.0, seed: int = 0, *, learnable: bool = False) -> None:
        super().__init__()
        if num_features < 1 or not scale > 0:
            raise ValueError(f"num_features={num_features!r}, scale={scale!r}: both must be above 0")
        self.num_features, self.scale, self.seed, self.learnable = num_features, scale, seed, learnable

    def bind(self, dim: int, periodic: Sequence[int] = ()) -> None:
        """Draw the projections of ``dim`` coordinates."""
        if periodic:
            raise ValueError("FourierFeatures can't close a periodic coordinate: use PositionalEncoding")
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.num_features, dim, generator=generator, dtype=torch.float64, device="cpu")
        frequencies = (drawn * self.scale * math.pi / 2).to(torch.get_default_device())
        if self.learnable:
            self.frequencies: Tensor = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies)
        self.features = dim + 2 * self.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``[N, d]``."""
        angles = nn.functional.linear(x, self.frequencies.to(x.dtype))
        return torch.cat([x, torch.sin(angles), torch.cos(angles)], -1)


_BASIS = (
    (1 / 6, -1 / 2, 1 / 2, -1 / 6),
    (2 / 3, 0.0, -1.0, 1 / 2),
    (1 / 6, 1 / 2, 1 / 2, -1 / 2),
    (0.0, 0.0, 0.0, 1 / 6),
)
"""Coefficients of 1, s, s^2, s^3 of the four uniform cubic B-splines that overlap a cell (de Boor 1978)."""


def _spline(k: int) -> Series:
    def series(s: Tensor, order: int) -> list[Tensor]:
        a, b, c, d = _BASIS[k]
        all_orders = [a + s * (b + s * (c + s * d)), b + s * (2 * c + s * 3 * d), 2 * c + 6 * d * s]
        all_orders += [torch.full_like(s, 6 * d), *[torch.zeros_like(s)] * max(order - 3, 0)]
        return all_orders[: order + 1]

    return series


def _line(x: Any, axis: int, cells: int, closed: bool) -> tuple[Tensor, Any]:
    """Return, along one axis, the four control points that matter ``[N, 4]`` and their weights ``[N, 4]``."""
    value = x.value if isinstance(x, Jet) else x
    scaled = (value[:, axis].detach() + 1) * (cells / 2)
    cell = scaled.floor().clamp(0, cells - 1)
    inside: Any = (x[:, axis : axis + 1] + 1) * (cells / 2) - cell[:, None]
    each: list[Any] = [
        compose(inside, _spline(k)) if isinstance(inside, Jet) else _spline(k)(inside, 0)[0] for k in range(4)
    ]
    weights: Any = torch.cat(each, -1)
    rows = cell.long()[:, None] + torch.arange(4, device=value.device)
    return rows % cells if closed else rows, weights


def _gather(table: Tensor, rows: Tensor, weights: Any) -> Any:
    if isinstance(weights, Jet):
        return lookup(table, rows, weights)
    return torch.einsum("nj,njf->nf", weights, table[rows])


class MultiresolutionGrid(Encoding):
    """Features on grids of several resolutions, between which cubic B-splines interpolate.

    Second derivatives are continuous, as second-order equations need: linear interpolation, which images are content
    with, has none.

    Args:
        levels: how many grids.
        base_resolution: cells of the coarsest along each axis.
        growth: of the resolution from one to the next.
        features_per_level: of each.
        table_size: most rows of a level's table; finer ones share rows by a hash. None stores all.

    Raises:
        ValueError: an argument out of range.

    Source: Müller et al. (2022), "Instant Neural Graphics Primitives", arXiv 2201.05989, section 3.

    >>> encoding = MultiresolutionGrid(levels=2, base_resolution=4)
    >>> encoding.bind(2)
    >>> encoding(torch.zeros(5, 2)).shape
    torch.Size([5, 6])
    """

    smoothness = 2.0

    def __init__(
        self, levels: int = 3, base_resolution: int = 4, growth: float = 2.0, features_per_level: int = 2,
        table_size: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, number in (("levels", levels), ("base_resolution", base_resolution),
                             ("features_per_level", features_per_level)):  # fmt: skip
            if number < 1:
                raise ValueError(f"{name}={number!r}: use 1 or more")
        if growth < 1 or (table_size is not None and table_size < 1):
            raise ValueError(f"growth={growth!r}, table_size={table_size!r}: both must be 1 or more")
        self.resolutions = [round(base_resolution * growth**k) for k in range(levels)]
        self.features_per_level, self.table_size = features_per_level, table_size

    def bind(self, dim: int, periodic: Sequence[int] = ()) -> None:
        """Make the tables of ``dim`` coordinates, near zero."""
        self.closed = [axis in periodic for axis in range(dim)]
        self.plain = [axis for axis in range(dim) if axis not in periodic]
        self.tables = nn.ParameterList()
        for cells in self.resolutions:
            rows = min(self._rows(cells), self.table_size or self._rows(cells))
            self.tables.append(nn.Parameter(0.1 * torch.randn(rows, self.features_per_level)))
        self.features = len(self.plain) + self.features_per_level * len(self.resolutions)

    def _rows(self, cells: int) -> int:
        return math.prod(cells if closed else cells + 3 for closed in self.closed)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``[N, d]``."""
        out = [x[:, self.plain]] if self.plain else []
        for cells, table in zip(self.resolutions, self.tables, strict=True):
            rows, weights = _line(x, 0, cells, self.closed[0])
            index = rows
            for axis in range(1, len(self.closed)):
                rows, more = _line(x, axis, cells, self.closed[axis])
                count = cells if self.closed[axis] else cells + 3
                index = (index[:, None, :] * count + rows[:, :, None]).flatten(1)
                weights = torch.cat([_times(weights, more, j) for j in range(4)], -1)
            if self._rows(cells) > len(table):
                index = (index * 2654435761) % len(table)  # Knuth's multiplicative hash
            out.append(_gather(table, index, weights))
        return torch.cat(out, -1)


def _times(weights: Any, more: Any, j: int) -> Any:
    """Return all of ``weights`` times the one at ``j`` of another axis."""
    one = more[:, j : j + 1]
    return multiply(weights, one) if isinstance(weights, Jet) else weights * one


class FactoredGrid(Encoding):
    """Features that are products of one spline for each axis: few parameters in many dimensions.

    Args:
        resolution: cells along each axis.
        rank: how many products.

    Raises:
        ValueError: an argument out of range.

    Source: the CP form of Chen et al. (2022), "TensoRF", arXiv 2203.09517, section 4.1; as a network for equations, Cho
    et al. (2023), "Separable PINN", arXiv 2306.15969.

    >>> encoding = FactoredGrid(resolution=8, rank=4)
    >>> encoding.bind(3)
    >>> encoding(torch.zeros(5, 3)).shape
    torch.Size([5, 7])
    """

    smoothness = 2.0

    def __init__(self, resolution: int = 16, rank: int = 8) -> None:
        super().__init__()
        if resolution < 1 or rank < 1:
            raise ValueError(f"resolution={resolution!r}, rank={rank!r}: use 1 or more")
        self.resolution, self.rank = resolution, rank

    def bind(self, dim: int, periodic: Sequence[int] = ()) -> None:
        """Make one table for each of ``dim`` coordinates."""
        self.closed = [axis in periodic for axis in range(dim)]
        self.plain = [axis for axis in range(dim) if axis not in periodic]
        self.tables = nn.ParameterList()
        for closed in self.closed:
            rows = self.resolution if closed else self.resolution + 3
            self.tables.append(nn.Parameter(torch.randn(rows, self.rank)))
        self.features = len(self.plain) + self.rank

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``[N, d]``."""
        product: Any = None
        for axis, (closed, table) in enumerate(zip(self.closed, self.tables, strict=True)):
            factor = _gather(table, *_line(x, axis, self.resolution, closed))
            product = factor if product is None else product * factor
        return torch.cat([x[:, self.plain], product], -1) if self.plain else product


class Compose(Encoding):
    """Several encodings side by side.

    >>> encoding = Compose(PositionalEncoding(2), FactoredGrid(rank=4))
    >>> encoding.bind(2)
    >>> encoding.features
    16
    """

    def __init__(self, *encodings: Encoding) -> None:
        super().__init__()
        if not encodings:
            raise ValueError("Compose needs one encoding or more")
        self.encodings = nn.ModuleList(encodings)

    @property
    def smoothness(self) -> float:  # type: ignore[override]
        """That of the least smooth."""
        return min(encoding.smoothness for encoding in self._all())

    @property
    def features(self) -> int:  # type: ignore[override]
        """Of all together."""
        return sum(encoding.features for encoding in self._all())

    def _all(self) -> list[Encoding]:
        return [encoding for encoding in self.encodings if isinstance(encoding, Encoding)]

    def bind(self, dim: int, periodic: Sequence[int] = ()) -> None:
        """Bind each."""
        for encoding in self._all():
            encoding.bind(dim, periodic)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``[N, d]``."""
        return torch.cat([encoding(x) for encoding in self._all()], -1)
