"""Multi-indices: which partial derivatives travel together, and how they combine.

A multi-index counts how often each coordinate is derived by: of ``(x, t)``, ``u_xxt`` is ``(2, 1)``. A set that holds
with an index all smaller ones is closed under the rules of Leibniz (products) and of Faà di Bruno (compositions); both
are worked out here once, as tables of positions and integer factors. A Laplacian needs the first derivatives alone, so
that it travels as one derivative where second derivatives would be several (Li et al., 2024, "Forward Laplacian",
arXiv 2307.08214).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Index = tuple[int, ...]


@dataclass(frozen=True)
class Laplacian:
    """The sum of the second derivatives by each of some axes.

    Attributes:
        axes: their numbers.
    """

    axes: tuple[int, ...]


Derivative = Index | Laplacian


@dataclass(frozen=True)
class Indices:
    """A set of multi-indices that holds with an index all smaller ones; the zero index (the value) comes first.

    Attributes:
        dim: number of coordinates.
        members: the indices, by order.
        laplacians: come after them.

    >>> Indices.closure(2, [(2, 0), (0, 1)]).members
    ((0, 0), (0, 1), (1, 0), (2, 0))
    >>> len(Indices.closure(3, [Laplacian((0, 1, 2))])), len(Indices.closure(3, [(2, 0, 0), (0, 2, 0), (0, 0, 2)]))
    (5, 7)
    """

    dim: int
    members: tuple[Index, ...]
    laplacians: tuple[Laplacian, ...] = ()

    @classmethod
    def closure(cls, dim: int, wanted: Iterable[Derivative]) -> Indices:
        """Return the smallest such set that holds ``wanted``."""
        found, laplacians = {(0,) * dim}, set()
        for derivative in wanted:
            if isinstance(derivative, Laplacian):
                laplacians.add(derivative)
                found.update(_unit(axis, dim) for axis in derivative.axes)
            else:
                found.update(itertools.product(*(range(n + 1) for n in derivative)))
        members = sorted(found, key=lambda index: (sum(index), index))
        return cls(dim, tuple(members), tuple(sorted(laplacians, key=lambda one: one.axes)))

    def __len__(self) -> int:
        return len(self.members) + len(self.laplacians)

    @cached_property
    def order(self) -> int:
        """Highest total order."""
        return max(2 if self.laplacians else 0, *map(sum, self.members))

    def highest(self, axis: int) -> int:
        """Highest order along one axis."""
        summed = (2 for laplacian in self.laplacians if axis in laplacian.axes)
        return max(*(index[axis] for index in self.members), *summed, 0)

    @cached_property
    def position(self) -> dict[Derivative, int]:
        """Where each derivative stands."""
        every: list[Derivative] = [*self.members, *self.laplacians]
        return {derivative: k for k, derivative in enumerate(every)}

    def firsts(self, laplacian: Laplacian) -> list[int]:
        """Where the first derivatives stand by the axes of a Laplacian."""
        return [self.position[_unit(axis, self.dim)] for axis in laplacian.axes]

    @cached_property
    def products(self) -> tuple[tuple[tuple[int, int, int], ...], ...]:
        """For each index the terms ``(factor, first, second)`` of the derivative of a product (Leibniz)."""
        table = []
        for index in self.members:
            terms = []
            for part in itertools.product(*(range(n + 1) for n in index)):
                rest = tuple(n - m for n, m in zip(index, part, strict=True))
                factor = math.prod(math.comb(n, m) for n, m in zip(index, part, strict=True))
                terms.append((factor, self.position[part], self.position[rest]))
            table.append(tuple(terms))
        for laplacian in self.laplacians:
            own = self.position[laplacian]
            table.append(((1, 0, own), *((2, k, k) for k in self.firsts(laplacian)), (1, own, 0)))
        return tuple(table)

    @cached_property
    def compositions(self) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]:
        """For each index the terms ``(factor, inner)`` of the derivative of ``f(g)`` (Faà di Bruno).

        A term is ``factor`` times the derivative of ``f`` of order ``len(inner)`` times the product of the derivatives
        of ``g`` at the positions ``inner``.
        """
        table: list[tuple[tuple[int, tuple[int, ...]], ...]] = []
        for index in self.members:
            axes = [axis for axis, n in enumerate(index) for _ in range(n)]
            terms: Counter[tuple[int, ...]] = Counter()
            for partition in _partitions(range(len(axes))):
                blocks = (Counter(axes[i] for i in block) for block in partition)
                inner = (self.position[tuple(block[axis] for axis in range(self.dim))] for block in blocks)
                terms[tuple(sorted(inner))] += 1
            table.append(tuple((factor, inner) for inner, factor in sorted(terms.items())))
        for laplacian in self.laplacians:
            table.append(((1, (self.position[laplacian],)), *((1, (k, k)) for k in self.firsts(laplacian))))
        return tuple(table)


def _unit(axis: int, dim: int) -> Index:
    return tuple(int(k == axis) for k in range(dim))


def _partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """All ways to put items into unordered groups, none of them empty."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for partition in _partitions(rest):
        yield [[first], *partition]
        for k, block in enumerate(partition):
            yield [*partition[:k], [first, *block], *partition[k + 1 :]]
