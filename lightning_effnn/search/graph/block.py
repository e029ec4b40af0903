"""One block of a graph network: linear, attention, aggregation, activation."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_effnn.formats.tagging import aside
from lightning_effnn.quantization import TensorQuantizer
from lightning_effnn.search.graph.config import FULL, BlockConfig
from lightning_effnn.search.graph.features import dropout
from lightning_effnn.search.graph.parts import (
    UNSIGNED,
    Activation,
    Aggregation,
    GCNAttention,
    Graph,
    LearnedAttention,
    Linear,
    LinearSkip,
    NoAttention,
    NoSkip,
    RunningMean,
)


class BlockParts(NamedTuple):
    """What a block consists of; a search puts modules here that choose among several."""

    linear: nn.Module
    attention: nn.Module
    aggregation: nn.Module
    skip: nn.Module
    aggregation_quantizer: nn.Module
    activation: nn.Module
    mean: nn.Module | None = None


class Quantizers(Protocol):
    """Makes the quantiser of a place: ``name`` is one of the bit widths of a block."""

    def __call__(self, name: str, signed: bool = True) -> nn.Module:
        """Return the module that rounds the tensor of this place."""


class GraphBlock(nn.Module):
    """Nodes' channels to nodes' channels, by way of the graph.

    Args:
        parts: the modules.
        width: most channels out.
        dropout: share of the inputs left out in training.
    """

    def __init__(self, parts: BlockParts, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = parts.linear
        self.attention = parts.attention
        self.aggregation = parts.aggregation
        self.skip = parts.skip
        self.bias = nn.Parameter(torch.zeros(width))
        self.aggregation_quantizer = parts.aggregation_quantizer
        self.activation = parts.activation
        self.mean = parts.mean

    @classmethod
    def from_config(
        cls,
        config: BlockConfig,
        in_channels: int,
        dropout: float,
        quantizers: Quantizers | None = None,
        norm: str = "none",
    ) -> GraphBlock:
        """Build the block with the choices of ``config``; other ``quantizers`` replace those of its bit widths."""

        def of_config(name: str, signed: bool = True) -> nn.Module:
            return quantizer(getattr(config, name), signed, weight=name.endswith("_w"))

        quantizers = quantizers or of_config
        parts = BlockParts(
            linear=linear_part(in_channels, config.width, quantizers),
            attention=attention_part(config.attention, config.width, config.heads, dropout, quantizers),
            aggregation=Aggregation(config.aggregation),
            skip=skip_part(config.skip, in_channels, config.width, quantizers),
            aggregation_quantizer=quantizers("aggregation_a"),
            activation=activation_part(config.activation, quantizers),
            mean=RunningMean(config.width) if norm == "mean" else None,
        )
        return cls(parts, config.width, dropout)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Return [N, width].

        Args:
            x: [N, in_channels].
            graph: its edges.
        """
        x = dropout(x, self.dropout, self.training)
        h = self.linear(x)
        y = self.aggregation(h, self.attention(h, graph), graph).to(self.bias.dtype)  # coefficients are in float32
        y = self.skip(x, y)
        y = self.aggregation_quantizer(y + self._offset(y))
        result: Tensor = self.activation(y)
        return result

    def _offset(self, y: Tensor) -> Tensor:
        bias = self.bias[: y.shape[-1]]
        if self.mean is None:
            return bias
        with aside():  # of a network that is trained both are constants, one bias on a chip
            offset: Tensor = bias - self.mean(y)
        return offset


def quantizer(bits: int, signed: bool = True, weight: bool = False) -> nn.Module:
    """Return what rounds a tensor to ``bits``; the identity for 32.

    The step of a weight is learned. That of an activation follows the tensor: a graph network's activations begin
    small, for its features do, and grow many times as it trains. A step that moves by its learning rate doesn't keep
    up, and what saturates doesn't learn.

    Args:
        bits: of an element.
        signed: whether there are negative numbers.
        weight: whether it is a weight.
    """
    if bits == FULL:
        return nn.Identity()
    return TensorQuantizer(bits, signed=signed, scale="learned" if weight else "observed")


def linear_part(in_channels: int, width: int, quantizers: Quantizers) -> Linear:
    """Return the product with the features."""
    return Linear(in_channels, width, quantizers("linear_w"), quantizers("linear_a"))


def attention_part(kind: str, width: int, heads: int, dropout: float, quantizers: Quantizers) -> nn.Module:
    """Return what gives each edge its coefficient; none is negative."""
    if kind == "none":
        return NoAttention()
    if kind == "gcn":
        return GCNAttention(quantizers("attention_a", signed=False))
    weight, result = quantizers("attention_w"), quantizers("attention_a", signed=False)
    return LearnedAttention(kind, width, heads, dropout, weight, result)


def skip_part(kind: str, in_channels: int, width: int, quantizers: Quantizers) -> nn.Module:
    """Return what adds to the aggregated messages."""
    return NoSkip() if kind == "none" else LinearSkip(linear_part(in_channels, width, quantizers))


def activation_part(kind: str, quantizers: Quantizers) -> Activation:
    """Return the function at the end of a block; where it changes nothing, nothing is rounded again."""
    if kind == "none":
        return Activation(kind, nn.Identity())
    return Activation(kind, quantizers("activation_a", signed=kind not in UNSIGNED))
