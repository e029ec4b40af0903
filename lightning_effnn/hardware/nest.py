"""Loop nests of many layers at once, as tables over sets of loops.

A layer mapped on an array leaves a handful of temporal loops. Whatever an operand needs at a memory
level - elements held, periods, word transfers - depends only on *which* loops lie inside, not on their
order, so every quantity is a table over the ``2**n`` subsets of the ``n`` loops (a bit mask), and an
ordering is a walk through the tables. This is what makes the search in :mod:`mapping` cheap.

The loop factors follow LOMA (Symons et al., AICAS 2021) as ZigZag runs it: prime factors of each temporal
extent, the smallest of the most divided dimension merged until at most ``LOOP_LIMIT`` remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.operation import DIMENSIONS, Operation

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LOOP_LIMIT = 6
OPERANDS = ("O", "W", "I")
_INDEX = {name: i for i, name in enumerate(DIMENSIONS)}
_RELEVANT = {
    "O": ("B", "G", "K", "OY", "OX"),
    "W": ("G", "K", "C", "FY", "FX"),
    "I": ("B", "G", "C"),  # and, partially, OY with FY and OX with FX
}
_IRRELEVANT = {"O": ("C", "FY", "FX"), "W": ("B", "OY", "OX"), "I": ("K",)}

RELEVANT = {op: np.array([d in _RELEVANT[op] for d in DIMENSIONS]) for op in OPERANDS}
IRRELEVANT = {op: np.array([d in _IRRELEVANT[op] for d in DIMENSIONS]) for op in OPERANDS}


@dataclass(frozen=True, slots=True)
class Problem:
    """What decides a mapping: extents, strides, dilations, operand widths and the spatial unrolling.

    ``spatial`` has one ``(dimension, factor)`` an array dimension, the factor already limited to the extent.
    """

    extents: tuple[int, ...]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    bits: tuple[int, int, int, int]  # weights, inputs, partial sums, outputs
    spatial: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, operation: Operation, accelerator: Accelerator) -> Problem:
        """The problem that ``operation`` poses on ``accelerator``."""
        extents = operation.extents
        spatial = [
            (_INDEX[dim], min(size, extents[_INDEX[dim]])) for dim, size in accelerator.unrolling(operation.kind)
        ]
        out_bits = operation.o_format.bits
        partial = operation.accumulator_bits or accelerator.accumulator_bits(
            operation.w_format, operation.i_format, operation.o_format
        )
        return cls(
            extents,
            (operation.stride_y, operation.stride_x),
            (operation.dilation_y, operation.dilation_x),
            (operation.w_format.bits, operation.i_format.bits, partial, out_bits),
            tuple(spatial),
        )

    def loops(self) -> list[tuple[int, int]]:
        """Temporal loops left by the unrolling: ``(dimension, factor)``, at most LOOP_LIMIT where possible."""
        temporal = list(self.extents)
        for dim in {d for d, _ in self.spatial}:
            unrolled = math.prod(f for d, f in self.spatial if d == dim)
            temporal[dim] = -(-temporal[dim] // unrolled)
        factors = {d: _prime_factors(size) for d, size in enumerate(temporal) if size > 1}
        limit = max(LOOP_LIMIT, len(factors))
        while sum(map(len, factors.values())) > limit:
            most = max(factors, key=lambda d: len(factors[d]))  # the first of the most divided, as LOMA
            small = factors[most]
            factors[most] = sorted([small[0] * small[1], *small[2:]])
        return [(d, f) for d, fs in factors.items() for f in fs] or [(0, 1)]


def _prime_factors(n: int) -> list[int]:
    found, p = [], 2
    while p * p <= n:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return [*found, n] if n > 1 else found


@dataclass
class NestBatch:
    """Tables of ``L`` problems that all have ``n`` temporal loops, on one accelerator.

    Attributes:
        dims, factors: ``[L, n]`` dimension and trip count of each loop.
        trips: ``[L, 2**n]`` product of trip counts of the loops in a mask.
        elements: per operand, ``[L, S, 2**n]``: elements held by one memory unit below which ``S`` spatial
            levels lie, when the loops of the mask run inside it. The unrolling may be fractional (33
            channels on 32 units are two rounds of 16.5): exact on average, used for energy.
        elements_whole: the same with whole units, used for time.
    """

    accelerator: Accelerator
    problems: Sequence[Problem]
    dims: Ints = field(init=False)
    factors: Ints = field(init=False)

    def __post_init__(self) -> None:
        loops = [p.loops() for p in self.problems]
        self.dims = np.array([[d for d, _ in ls] for ls in loops], dtype=np.int64)
        self.factors = np.array([[f for _, f in ls] for ls in loops], dtype=np.int64)

    @property
    def loop_count(self) -> int:
        """Number of temporal loops of each problem."""
        return int(self.dims.shape[1])

    @cached_property
    def total_macs(self) -> Floats:
        """``[L]`` multiply-accumulates."""
        return np.array([np.prod(np.array(p.extents, dtype=np.float64)) for p in self.problems])

    @cached_property
    def bits(self) -> dict[str, Floats]:
        """``[L]`` width of each operand; ``P`` is the partial sum."""
        table = np.array([p.bits for p in self.problems], dtype=np.float64)
        return dict(zip(("W", "I", "P", "O"), table.T, strict=True))

    @cached_property
    def dim_trips(self) -> Floats:
        """``[L, 2**n, 8]`` trip count of each dimension over the loops of a mask."""
        table = np.ones((len(self.problems), 1, len(DIMENSIONS)))
        rows = np.arange(len(self.problems))
        for j in range(self.loop_count):
            with_loop = table.copy()
            with_loop[rows, :, self.dims[:, j]] *= self.factors[:, j, None]
            table = np.concatenate([table, with_loop], axis=1)
        return table

    @cached_property
    def trips(self) -> Floats:
        """``[L, 2**n]`` iterations of the loops of a mask."""
        result: Floats = self.dim_trips.prod(axis=2)
        return result

    @cached_property
    def cycles(self) -> Floats:
        """``[L]`` iterations of all temporal loops."""
        return self.trips[:, -1]

    @cached_property
    def _units(self) -> Floats:
        """``[2, L, D, 8]`` unrolling of each array dimension, fractional and whole; 1 where it unrolls nothing."""
        units = np.ones((2, len(self.problems), len(self.accelerator.array), len(DIMENSIONS)))
        for row, problem in enumerate(self.problems):
            for dim in {d for d, _ in problem.spatial}:
                axes = [i for i, (d, _) in enumerate(problem.spatial) if d == dim]
                sizes = [problem.spatial[i][1] for i in axes]
                largest = axes[sizes.index(max(sizes))]
                earlier = math.prod(f for i, f in zip(axes, sizes, strict=True) if i < largest)
                extent = problem.extents[dim]
                rounds = -(-extent // int(problem.spatial[largest][1] * earlier))
                for i, f in zip(axes, sizes, strict=True):
                    exact = extent / rounds / earlier if i == largest else f
                    units[:, row, i, dim] = exact, int(exact)
        return units

    @cached_property
    def _spatial(self) -> dict[str, Floats]:
        """Per operand ``[2, L, S, 8]`` unrolling below each memory level, cumulative, ``S = levels + 2``."""
        table = {}
        for op in OPERANDS:
            levels = self.accelerator.levels(op)
            below = np.ones((2, len(self.problems), len(levels) + 2, len(DIMENSIONS)))
            for axis, name in enumerate(self.accelerator.array):
                served = next((i for i, m in enumerate(levels) if name in m.served_dims), len(levels))
                below[:, :, served + 1 :] *= self._units[:, :, None, axis]
            table[op] = below
        return table

    @cached_property
    def _held(self) -> dict[str, Floats]:
        """Per operand ``[2, L, S, 2**n]`` elements, fractional and whole units."""
        held = {}
        for op in OPERANDS:
            sizes = self._spatial[op][:, :, :, None, :] * self.dim_trips[None, :, None, :, :]
            held[op] = sizes[..., RELEVANT[op]].prod(axis=-1)
            if op == "I":
                for axis, (out, tap) in enumerate((("OY", "FY"), ("OX", "FX"))):
                    held[op] = held[op] * self._window(axis, sizes[..., _INDEX[out]], sizes[..., _INDEX[tap]])
        return held

    def _window(self, axis: int, outputs: Floats, taps: Floats) -> Floats:
        """Distinct input positions ``stride * o + dilation * f`` (ZigZag's partially relevant loops)."""
        geometry = [(p.stride[axis], p.dilation[axis], p.extents[4 + axis], p.extents[6 + axis]) for p in self.problems]
        stride, dilation, all_outputs, all_taps = np.array(geometry, np.float64).T[..., None, None]
        common = np.gcd(stride.astype(np.int64), dilation.astype(np.int64))

        def positions(a: Floats, b: Floats) -> Floats:
            result: Floats = a * b - np.maximum(0, b - stride // common) * (a - dilation // common)
            return result

        return np.minimum(positions(np.trunc(outputs), np.trunc(taps)), positions(all_outputs, all_taps))

    @property
    def elements(self) -> dict[str, Floats]:
        """See the class; fractional units."""
        return {op: held[0] for op, held in self._held.items()}

    @property
    def elements_whole(self) -> dict[str, Floats]:
        """See the class; whole units."""
        return {op: held[1] for op, held in self._held.items()}

    @cached_property
    def unit_counts(self) -> dict[str, Floats]:
        """Per operand ``[L, levels + 2]``: copies of what lies at and above each spatial level."""
        counts = {}
        for op in OPERANDS:
            total = self._spatial[op][0].prod(axis=2)
            counts[op] = np.round(np.round(total[:, -1:] / total, 3))
        return counts

    def broadcast(self, operand: str, whole: bool) -> Floats:
        """``[L, levels + 1]`` distinct elements a word read at a level is spread over, below it."""
        held = (self.elements_whole if whole else self.elements)[operand][:, :, 0]
        result: Floats = np.round(held[:, 1:] / held[:, :-1])
        return result

    @cached_property
    def _partial(self) -> npt.NDArray[np.bool_]:
        reduction = IRRELEVANT["O"]
        temporal = self.dim_trips[..., reduction].prod(axis=2)
        outside = temporal < temporal[:, -1:]
        spatial = self._spatial["O"][..., reduction].prod(axis=3)
        above = spatial < spatial[..., -1:] - 1e-9
        # what leaves level S goes through the spatial level above it too, so look one further
        further = np.concatenate([above[..., 1:], np.zeros_like(above[..., :1])], axis=2)
        result: npt.NDArray[np.bool_] = outside[None, :, None, :] | further[..., None]
        return result

    def partial_sums(self, whole: bool) -> npt.NDArray[np.bool_]:
        """``[L, S, 2**n]``: whether sums are still incomplete above ``S - 1`` levels and the mask's loops."""
        result: npt.NDArray[np.bool_] = self._partial[int(whole)]
        return result

    def operand_bits(self, whole: bool) -> dict[str, Any]:
        """Per operand, width of what moves across a level, broadcastable to ``[L, S, 2**n]``."""
        partial = self.partial_sums(whole)
        out = np.where(partial, self.bits["P"][:, None, None], self.bits["O"][:, None, None])
        return {"O": out, "W": self.bits["W"][:, None, None], "I": self.bits["I"][:, None, None]}
