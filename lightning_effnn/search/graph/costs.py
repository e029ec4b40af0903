"""The cost of every network of a space on a graph, of the kind that is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.hardware import Accelerator
from lightning_effnn.search.cost import CostModel, CostTerm
from lightning_effnn.search.graph.densities import measured_densities
from lightning_effnn.search.graph.energy import EnergyTables
from lightning_effnn.search.graph.supernet import SuperGraphNet
from lightning_effnn.search.graph.tables import bits_terms, bops_terms

COSTS = ("bits", "bops", "energy")


def graph_cost(
    kind: str, net: SuperGraphNet, x: Tensor, edge_index: Tensor, accelerator: str | Path | Accelerator = "eyeriss_like"
) -> CostModel:
    """Return the expected cost as a function of the choices' probabilities.

    Args:
        kind: ``"bits"`` of weights and of activations; ``"bops"``, bit operations; ``"energy"`` in pJ.
        net: the networks; for energy its numbers tell how many are zero.
        x, edge_index: of the graph.
        accelerator: for energy: a preset's name, a YAML file or an ``Accelerator``.

    Raises:
        ValueError: an unknown kind or accelerator.
    """
    nodes, edges = graph_extents(x, edge_index)
    if kind == "bits":
        return CostModel(bits_terms(net.space, nodes, edges), unit="bit")
    if kind == "bops":
        return CostModel(bops_terms(net.space, nodes, edges), unit="bit operation")
    if kind == "energy":
        densities = measured_densities(net, x, edge_index)
        return CostModel(EnergyTables(net.space, x, edge_index, accelerator, densities).terms(), unit="pJ")
    raise ValueError(f"cost is {kind!r}: use one of {', '.join(COSTS)}")


class LogCost:
    r"""Expected cost on a logarithmic scale: 0 for the cheapest options, 1 for the most expensive ones.

    .. math:: \\frac{1}{G} \\sum_g \\frac{\\log(E[c_g] / \\min c_g)}{\\log(\\max c_g / \\min c_g)}

    Over the cost of the largest network in fp32 alone, what small networks still differ by is lost in the noise of a
    loss: from 8 to 4 bits is 0.4 % of it for a network a quarter as wide. Here each halving counts alike.

    Args:
        model: the tables.

    >>> from lightning_effnn.search.cost import CostTerm
    >>> model = CostModel([CostTerm("layer", ("bits",), torch.tensor([2.0, 4.0, 32.0]))], unit="bit")
    >>> float(LogCost(model)({"bits": torch.tensor([0.0, 1.0, 0.0])}))
    0.25
    """

    def __init__(self, model: CostModel) -> None:
        self.model = model
        self._groups: list[tuple[CostModel, float]] = []
        for group in dict.fromkeys(term.group for term in model.terms):
            terms = [term for term in model.terms if term.group == group]
            part = CostModel(terms, model.unit)
            low = sum(float(term.table.min()) for term in terms) / part.references[group]
            self._groups.append((part, max(low, 1e-9)))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LogCost:
        """Build it from :attr:`state`."""
        return cls(CostModel([CostTerm(*term) for term in state["terms"]], state["unit"]))

    @property
    def state(self) -> dict[str, Any]:
        """Plain types and tensors, for a checkpoint."""
        terms = [(term.name, term.choices, term.table, term.group) for term in self.model.terms]
        return {"terms": terms, "unit": self.model.unit}

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar, with a gradient.

        Args:
            probabilities: for each choice a vector over its options.
        """
        values = [
            torch.log(part.relative(probabilities) / low) / -math.log(low) for part, low in self._groups if low < 1
        ]
        return torch.stack(values).mean() if values else next(iter(probabilities.values())).new_zeros(())


def graph_extents(x: Tensor, edge_index: Tensor) -> tuple[int, int]:
    """Return the numbers of nodes and of edges, with exactly one edge at each node itself.

    >>> import torch
    >>> graph_extents(torch.zeros(3, 5), torch.tensor([[0, 1, 2], [1, 1, 0]]))
    (3, 5)
    """
    return len(x), int((edge_index[0] != edge_index[1]).sum()) + len(x)
