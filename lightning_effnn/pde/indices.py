"""Multi-indices: which partial derivatives travel together, and how they combine.

A multi-index counts how often each coordinate is derived by: of ``(x, t)``, ``u_xxt`` is ``(2, 1)``. A set that holds
with an index all smaller ones is closed under the rules of Leibniz (products) and of Faà di Bruno (compositions); both
are worked out here once, as tables of positions and integer factors.
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
class Indices:
    """A set of multi-indices that holds with an index all smaller ones; the zero index (the value) comes first.

    Attributes:
        dim: number of coordinates.
        members: the indices, by order.

    >>> Indices.closure(2, [(2, 0), (0, 1)]).members
    ((0, 0), (0, 1), (1, 0), (2, 0))
    """

    dim: int
    members: tuple[Index, ...]

    @classmethod
    def closure(cls, dim: int, wanted: Iterable[Index]) -> Indices:
        """Return the smallest such set that holds ``wanted``."""
        found = {(0,) * dim}
        for index in wanted:
            found.update(itertools.product(*(range(n + 1) for n in index)))
        return cls(dim, tuple(sorted(found, key=lambda index: (sum(index), index))))

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def order(self) -> int:
        """Highest total order."""
        return max(map(sum, self.members))

    @cached_property
    def position(self) -> dict[Index, int]:
        """Where each index stands."""
        return {index: k for k, index in enumerate(self.members)}

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
        return tuple(table)


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
