r"""What a choice costs, as an expectation that has a gradient.

A network's cost is a sum of terms, each depending on a few choices: the product of layer 2 on the width of layer 1, its
own width and two bit widths. With a table of a term's cost at every combination of these options, and choices made
independently,

.. math:: E[c] = \sum_t \sum_{i_1 \dots i_m} T_t[i_1, \dots, i_m] \, p_{t,1}[i_1] \cdots p_{t,m}[i_m]

is exact, and at one-hot probabilities it is the cost of the network so chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class CostTerm:
    """One part of a cost.

    Attributes:
        name: which part, ``"blocks.0.linear"``.
        choices: what it depends on, one name an axis of ``table``; none for a constant.
        table: the cost at every combination of options, float64.
        group: terms of one group are added; groups are averaged, each relative to its own reference.
    """

    name: str
    choices: tuple[str, ...]
    table: Tensor
    group: str = ""


class CostModel:
    """Expected cost relative to a reference, that of the most expensive options by default.

    Numbers of different kinds (bits of weights, bits of activations) form groups: each is divided by its own reference
    before they are averaged, else the larger kind would be the only one to count.

    Args:
        terms: the parts; those whose table holds a value below 0 or none at all are refused.
        unit: of the tables' values.
        references: what the cost of each group is divided by; without them, the sum of its terms' largest entries,
            which is the largest network at full precision for tables that grow with width and bits.

    Raises:
        ValueError: no terms, a table with other axes than its choices, a negative or missing value, nothing but zeros.

    >>> term = CostTerm("layer", ("width", "bits"), torch.tensor([[4.0, 8.0], [8.0, 16.0]]))
    >>> model = CostModel([term], unit="bits")
    >>> float(model.relative({"width": torch.tensor([0.5, 0.5]), "bits": torch.tensor([1.0, 0.0])}))
    0.375
    >>> model.absolute({"width": torch.tensor([0.0, 1.0]), "bits": torch.tensor([0.0, 1.0])})
    {'': 16.0}
    """

    def __init__(self, terms: Sequence[CostTerm], unit: str, references: Mapping[str, float] | None = None) -> None:
        for term in terms:
            if term.table.dim() != len(term.choices):
                raise ValueError(f"table of {term.name} has {term.table.dim()} axes for {len(term.choices)} choices")
            if not bool((term.table >= 0).all()) or not bool(term.table.isfinite().all()):
                raise ValueError(f"table of {term.name} holds a value that is negative, infinite or not a number")
        self.terms = tuple(replace(term, table=term.table.double()) for term in terms)
        self.unit = unit
        self.references: dict[str, float] = dict(references or {})
        for term in terms if references is None else ():
            self.references[term.group] = self.references.get(term.group, 0.0) + float(term.table.max())
        if not self.references or min(self.references.values()) <= 0:
            raise ValueError(f"the references of the cost are {self.references}: each group needs one above 0")

    def relative(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over groups of expected cost over reference, a scalar with a gradient.

        Args:
            probabilities: for each choice a vector over its options.
        """
        groups = self._groups(probabilities)
        return torch.stack([groups[name] / self.references[name] for name in groups]).mean()

    def absolute(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the expected cost of each group, in :attr:`unit`.

        Args:
            probabilities: as in :meth:`relative`.
        """
        return {name: float(value.detach()) for name, value in self._groups(probabilities).items()}

    def _groups(self, probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for term in self.terms:
            value = _expected(term, probabilities)
            sums[term.group] = sums[term.group] + value if term.group in sums else value
        return sums


def _expected(term: CostTerm, probabilities: Mapping[str, Tensor]) -> Tensor:
    value = term.table
    for choice in term.choices:  # each product takes the first axis away
        weights = probabilities[choice]
        value = torch.tensordot(weights.double(), value.to(weights.device), dims=1)
    assert math.prod(value.shape) == 1
    return value
