"""Which graph networks are to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.search.graph.config import (
    ACTIVATIONS,
    AGGREGATIONS,
    ATTENTIONS,
    BITS,
    FULL,
    SKIPS,
    BlockConfig,
    GraphNetConfig,
    check_bits,
)

ARCHITECTURE = ("width", "attention", "aggregation", "activation", "skip")
"""Choices of a block that are not bit widths."""


@dataclass(frozen=True)
class GraphSpace:
    """Every option of every choice, one after another.

    Choices are named as in the configuration: ``"input_a"``, ``"blocks.0.width"``, ``"blocks.1.linear_w"``. The first
    block has no skip (its input is no block's result); the last one's width is the number of classes, and its scores
    go through no activation.

    Attributes:
        in_channels, num_classes: of the data.
        num_layers: blocks.
        hidden_channels, attention, aggregation, activation, skip: options of each block.
        w_bits, a_bits: options of each weight and each activation; ``(32,)`` chooses the architecture alone.
        dropout, norm: of every network.

    Raises:
        ValueError: no options, an option twice, or one that is none; says which were accepted.

    >>> space = GraphSpace(1433, 7, hidden_channels=(16, 64), w_bits=(4,), a_bits=(4, 8))
    >>> space.architecture["blocks.0.width"], space.quantization["blocks.0.linear_w"]
    ((16, 64), (4,))
    """

    in_channels: int
    num_classes: int
    num_layers: int = 2
    hidden_channels: Sequence[int] = (16, 32, 64, 128)
    attention: Sequence[str] = ATTENTIONS
    aggregation: Sequence[str] = AGGREGATIONS
    activation: Sequence[str] = ACTIVATIONS
    skip: Sequence[str] = SKIPS
    w_bits: Sequence[int] = (1, 2, 4, 6, 8, FULL)
    a_bits: Sequence[int] = (2, 4, 6, 8, FULL)
    dropout: float = 0.5
    norm: str = "none"

    def __post_init__(self) -> None:
        if isinstance(self.num_layers, bool) or not isinstance(self.num_layers, int) or self.num_layers < 1:
            raise ValueError(f"num_layers is {self.num_layers!r}: use a whole number of at least 1")
        for field in fields(self):
            options = getattr(self, field.name)
            if field.name in ("in_channels", "num_classes", "num_layers", "dropout", "norm"):
                continue
            if isinstance(options, str) or not options or len(set(options)) != len(tuple(options)):
                raise ValueError(f"{field.name} is {options!r}: use a list of one or more options, each once")
            object.__setattr__(self, field.name, tuple(options))
        for bits in (*self.w_bits, *self.a_bits):
            check_bits("w_bits" if bits in self.w_bits else "a_bits", bits)
        for choice, options in self.architecture.items():  # a configuration knows what is accepted
            for option in options:
                self.config(self.first | {choice: option})

    @property
    def architecture(self) -> dict[str, tuple[Any, ...]]:
        """Options of each choice that is not a bit width."""
        found: dict[str, tuple[Any, ...]] = {}
        for number in range(self.num_layers):
            last = number == self.num_layers - 1
            found[f"blocks.{number}.width"] = (self.num_classes,) if last else tuple(self.hidden_channels)
            found[f"blocks.{number}.attention"] = tuple(self.attention)
            found[f"blocks.{number}.aggregation"] = tuple(self.aggregation)
            found[f"blocks.{number}.activation"] = ("none",) if last else tuple(self.activation)
            found[f"blocks.{number}.skip"] = tuple(self.skip) if number else ("none",)
        return found

    @property
    def quantization(self) -> dict[str, tuple[int, ...]]:
        """Options of each bit width."""
        found = {"input_a": tuple(self.a_bits)}
        for number in range(self.num_layers):
            for name in BITS:
                scores = name == "activation_a" and number == self.num_layers - 1
                options = (FULL,) if scores else self.w_bits if name.endswith("_w") else self.a_bits
                found[f"blocks.{number}.{name}"] = tuple(options)
        return found

    @property
    def options(self) -> dict[str, tuple[Any, ...]]:
        """Options of every choice."""
        return {**self.architecture, **self.quantization}

    def features(self) -> dict[str, Tensor]:
        """What is known of options beforehand: how much narrow blocks and few bits may do harm, see AdditiveSurrogate.

        Rounding to one bit less has about four times the squared error. Rows are of weights' bits, of activations'
        bits, and of widths.
        """
        found = {}
        for name, options in self.options.items():
            row = 2 if name.endswith(".width") else 0 if name.endswith("_w") else 1 if name.endswith("_a") else None
            if row is not None and len(options) > 1:
                values = [1 / n if row == 2 else 4.0**-n for n in options]
                found[name] = torch.zeros(3, len(options), device="cpu")
                found[name][row] = torch.tensor(values, device="cpu")
        return found

    def unseen(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expected error rate that few bits cost, and that sampled networks don't show: a scalar.

        Weights that are shared by all bits have learnt to bear the fewest; a network trained with more makes use of
        them. Two bits for the first weights of a graph convolution cost 0.011 on CiteSeer, four 0.004, and in the
        search nothing. Here two bits cost 0.01, and each bit more a quarter of that; those of the features, whose
        rounding cost nothing there, are free.

        Args:
            probabilities: for each choice a vector over its options.
        """
        total = torch.zeros((), device=next(iter(probabilities.values())).device)
        for name, options in self.quantization.items():
            if name != "input_a" and len(options) > 1:
                errors = torch.tensor([0.16 * 4.0**-bits for bits in options], device=probabilities[name].device)
                total = total + (errors * probabilities[name]).sum()
        return total

    @property
    def first(self) -> dict[str, Any]:
        """The first option of every choice."""
        return {name: options[0] for name, options in self.options.items()}

    def config(self, chosen: Mapping[str, Any]) -> GraphNetConfig:
        """Return the network with these options.

        Args:
            chosen: one for each choice.
        """
        blocks = [
            BlockConfig(**{name: chosen[f"blocks.{number}.{name}"] for name in (*ARCHITECTURE, *BITS)})
            for number in range(self.num_layers)
        ]
        return GraphNetConfig(self.in_channels, tuple(blocks), chosen["input_a"], self.dropout, self.norm)
