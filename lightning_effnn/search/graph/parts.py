"""The parts of a graph block; each rounds its own weights and what it hands on.

Channels beyond those of an input are left aside, so that the parts of a narrow network are slices of a wide one's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_effnn.search.graph._geometric import scatter, softmax, with_self_loops
from lightning_effnn.search.graph.features import product
from lightning_effnn.search.graph.sums import NeighbourSums

_NEGATIVE_SLOPE = 0.2
"""Of the leaky rectifier in graph attention: Velickovic et al. (2018), arXiv 1710.10903, section 2.1."""
_MEAN_MOMENTUM = 0.1
"""Weight of the newest batch in a running mean: PyTorch's for batch normalisation."""


class Graph(NamedTuple):
    """Edges with one loop at each node: from ``source`` [E] to ``target`` [E], among ``nodes`` nodes."""

    source: Tensor
    target: Tensor
    nodes: int
    sums: NeighbourSums

    @classmethod
    def of(cls, edge_index: Tensor, nodes: int) -> Graph:
        """From edges [2, E], whatever loops they have."""
        source, target = with_self_loops(edge_index, nodes)
        return cls(source, target, nodes, NeighbourSums(source, target, nodes))


class Linear(nn.Module):
    """``x @ W.T`` without a bias.

    Args:
        in_channels, out_channels: most channels in and out.
        weight_quantizer, quantizer: of the weight, of the result.
    """

    def __init__(self, in_channels: int, out_channels: int, weight_quantizer: nn.Module, quantizer: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        nn.init.xavier_uniform_(self.weight)
        self.weight_quantizer = weight_quantizer
        self.quantizer = quantizer

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        """Return the first ``width`` channels (all if None) of the product: [N, width]."""
        weight = self.weight_quantizer(self.weight[:width, : x.shape[-1]])
        result: Tensor = self.quantizer(product(x, weight))
        return result


class NoAttention(nn.Module):
    """Every edge counts alike."""

    def forward(self, h: Tensor, graph: Graph) -> None:
        """Return None, which stands for ones."""


class GCNAttention(nn.Module):
    """A constant: one over the root of both ends' degrees (Kipf and Welling, 2017, arXiv 1609.02907, equation 2)."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        """Return [E, 1]."""
        ones = torch.ones(len(graph.target), device=h.device)
        scale = scatter(ones, graph.target, graph.nodes, "sum").rsqrt()
        result: Tensor = self.quantizer((scale[graph.source] * scale[graph.target]).unsqueeze(1))
        return result


class LearnedAttention(nn.Module):
    r"""A softmax, over the edges into a node, of scores learned from both ends.

    With channels :math:`h_i` of the target and :math:`h_j` of the source, and weights :math:`l, r, a`:

    - ``gat``: :math:`\mathrm{leaky}(l \cdot h_i + r \cdot h_j)`
    - ``sym_gat``: that of both directions added
    - ``cos``: :math:`(l \odot h_i) \cdot (r \odot h_j)`
    - ``linear``: :math:`\tanh(r \cdot h_j)`
    - ``gen_linear``: :math:`a \cdot \tanh(l \odot h_i + r \odot h_j)`

    Args:
        kind: one of these.
        channels: most channels of all heads together.
        heads: groups of channels with weights of their own.
        dropout: share of the coefficients left out in training.
        weight_quantizer, quantizer: of the weights, of the coefficients.

    Source: Gao et al. (2019), "GraphNAS", arXiv 1904.09981, table 1.
    """

    def __init__(
        self,
        kind: str,
        channels: int,
        heads: int,
        dropout: float,
        weight_quantizer: nn.Module,
        quantizer: nn.Module,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.heads = heads
        self.dropout = dropout
        self.names = {"linear": ("r",), "gen_linear": ("l", "r", "a")}.get(kind, ("l", "r"))
        self.weight = nn.Parameter(torch.empty(len(self.names), heads, channels // heads))
        bound = math.sqrt(6 / (1 + channels // heads))
        nn.init.uniform_(self.weight, -bound, bound)
        self.weight_quantizer = weight_quantizer
        self.quantizer = quantizer

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        """Return [E, heads]."""
        h = h.reshape(len(h), self.heads, -1)
        # float32: sums of exponentials over the edges of a hub don't fit into half precision
        scores = self._scores(h, self.weight_quantizer(self.weight[..., : h.shape[-1]]), graph).float()
        coefficients: Tensor = self.quantizer(softmax(scores, graph.target, graph.nodes))
        return F.dropout(coefficients, self.dropout, self.training)

    def _scores(self, h: Tensor, weight: Tensor, graph: Graph) -> Tensor:
        vectors: dict[str, Tensor] = dict(zip(self.names, weight, strict=True))
        source, target = graph.source, graph.target
        if self.kind == "linear":
            return torch.tanh((h * vectors["r"]).sum(-1))[source]
        if self.kind == "cos":
            left = h * (vectors["l"] * vectors["r"])
            if graph.sums.can(h):
                return graph.sums.scores(left, h)
            return (left[target] * h[source]).sum(-1)
        if self.kind == "gen_linear" and graph.sums.can(h):
            return graph.sums.bent_scores(h, vectors["l"], vectors["r"], vectors["a"])
        left, right = h * vectors["l"], h * vectors["r"]
        if self.kind == "gen_linear":
            return (torch.tanh(left[target] + right[source]) * vectors["a"]).sum(-1)
        left, right = left.sum(-1), right.sum(-1)
        scores = F.leaky_relu(left[target] + right[source], _NEGATIVE_SLOPE)
        if self.kind == "sym_gat":
            scores = scores + F.leaky_relu(left[source] + right[target], _NEGATIVE_SLOPE)
        return scores


class Aggregation(nn.Module):
    """Messages, channels of an edge's source times its coefficient, gathered in its target by sum, mean or maximum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, h: Tensor, coefficients: Tensor | None, graph: Graph) -> Tensor:
        """Return [N, channels]."""
        if graph.sums.can(h):
            result: Tensor = getattr(graph.sums, self.kind)(h, coefficients)
            return result
        messages = h[graph.source]
        if coefficients is not None:
            heads = coefficients.shape[1]
            messages = (messages.reshape(len(messages), heads, -1) * coefficients.unsqueeze(-1)).flatten(1)
        return scatter(messages, graph.target, graph.nodes, self.kind)


class NoSkip(nn.Module):
    """Nothing past the graph."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y``."""
        return y


class LinearSkip(nn.Module):
    """A product of the block's input, added past the graph."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y`` and the product of ``x``: [N, channels of y]."""
        result: Tensor = y + self.linear(x, y.shape[-1])
        return result


class RunningMean(nn.Module):
    """The mean of each channel over nodes: in train mode that of the batch, else a running one.

    Where nodes have many neighbours, what is aggregated is nearly the same everywhere. Without its mean the few levels
    of a quantiser, and the gradients, are left for what differs; a network that is trained has it in its biases.

    Args:
        channels: how many.

    Source: mean-only batch normalisation: Salimans and Kingma (2016), arXiv 1602.07868, section 3.
    """

    value: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        """Return [channels], in the dtype of ``y``: [N, channels]."""
        if not self.training:
            return self.value.to(y.dtype)
        mean = y.float().mean(0)
        with torch.no_grad():
            self.value.lerp_(mean.to(self.value.dtype), _MEAN_MOMENTUM)
        return mean.to(y.dtype)


class Activation(nn.Module):
    """A function of each number, and the quantiser of what it gives."""

    def __init__(self, kind: str, quantizer: nn.Module) -> None:
        super().__init__()
        self.kind = kind
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of ``x``."""
        result: Tensor = self.quantizer(_FUNCTIONS[self.kind](x))
        return result


UNSIGNED = ("relu", "relu6", "sigmoid", "softplus")
"""Activations that give no negative numbers."""


def _same(x: Tensor) -> Tensor:
    return x


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _same,
    "relu": F.relu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu6": F.relu6,
    "softplus": F.softplus,
}
