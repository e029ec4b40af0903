"""Which share of a graph network's numbers is not zero, by the bits that they are rounded to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn.search.graph.block import activation_part, quantizer
from lightning_effnn.search.graph.parts import LearnedAttention
from lightning_effnn.search.graph.supernet import OneOf, SuperGraphNet

_ROUNDS = 2
"""How often each option runs."""


@dataclass
class Densities:
    """Shares of non-zeros in a block, as far as they were measured; the rest is that of normally distributed numbers.

    Attributes:
        linear_w, attention_w, linear_a: by bits.
        activation: by activation and bits.
    """

    linear_w: dict[int, float] = field(default_factory=dict)
    attention_w: dict[int, float] = field(default_factory=dict)
    linear_a: dict[int, float] = field(default_factory=dict)
    activation: dict[tuple[str, int], float] = field(default_factory=dict)

    def of(self, place: str, bits: int) -> float:
        """Density of weights, or of a product, in so many bits."""
        found: dict[int, float] = getattr(self, place)
        return found.get(bits, normal_density("none", bits))

    def activated(self, kind: str, bits: int) -> float:
        """Density of what a block hands on."""
        return self.activation.get((kind, bits), normal_density(kind, bits))


@lru_cache(maxsize=256)
def normal_density(activation: str, bits: int) -> float:
    """Share of non-zeros among normally distributed numbers after an activation and a fresh quantiser.

    >>> normal_density("relu", 32) < 0.6 < normal_density("none", 8)
    True
    """
    numbers = torch.randn(1 << 12, generator=torch.Generator().manual_seed(0), device="cpu")
    if activation == "none":
        return _density(quantizer(bits)(numbers))
    return _density(activation_part(activation, lambda place, signed=True: quantizer(bits, signed))(numbers))


@torch.no_grad()
def measured_densities(net: SuperGraphNet, x: Tensor, edge_index: Tensor) -> list[Densities]:
    """Return the densities in each block of a network of networks, from runs in which each option has its turns.

    Args:
        net: after some training; it is left as it is.
        x, edge_index: of the graph.
    """
    net = copy.deepcopy(net).eval()
    found = [Densities() for _ in net.blocks]
    for densities, block in zip(found, net.blocks, strict=True):
        for name, place in (("linear.linear", "linear_w"), ("attention", "attention_w")):
            getattr(densities, place).update(_weights(block.get_submodule(name)))
    for gates in _turns(net):
        chosen = {name: net.space.options[name][int(gate.argmax())] for name, gate in gates.items()}
        seen: dict[str, float] = {}
        hooks = [
            net.get_submodule(name).register_forward_hook(_Note(seen, name))
            for number in range(len(net.blocks))
            for name in (f"blocks.{number}.linear", f"blocks.{number}.activation")
        ]
        net(x, edge_index, gates)
        for hook in hooks:
            hook.remove()
        for number, densities in enumerate(found):
            name = f"blocks.{number}"
            _average(densities.linear_a, chosen[f"{name}.linear_a"], seen[f"{name}.linear"])
            kind = chosen[f"{name}.activation"]
            bits = chosen[f"{name}.aggregation_a" if kind == "none" else f"{name}.activation_a"]
            _average(densities.activation, (kind, bits), seen[f"{name}.activation"])
    return found


class _Note:
    """A hook that notes the density of what a module gives."""

    def __init__(self, seen: dict[str, float], name: str) -> None:
        self.seen, self.name = seen, name

    def __call__(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        self.seen[self.name] = _density(output)


def _turns(net: SuperGraphNet) -> Iterator[dict[str, Tensor]]:
    """Gates such that each bit width has its turns; the other choices take theirs in another rhythm."""
    generator = torch.Generator().manual_seed(0)
    device = next(net.parameters()).device
    most = max(len(options) for options in net.space.options.values())
    for turn in range(_ROUNDS * most):
        gates = {}
        for name, options in net.space.options.items():
            pick = (
                turn % len(options)
                if name.endswith("linear_a")
                else int(torch.randint(len(options), (), generator=generator, device="cpu"))
            )
            gates[name] = torch.eye(len(options), device=device)[pick]
        yield gates


def _average(found: dict[Any, float], key: Any, value: float) -> None:
    found[key] = (found[key] + value) / 2 if key in found else value


def _weights(part: Any) -> dict[int, float]:
    """Density of a part's weights for each number of bits; of attentions that have weights the mean."""
    if isinstance(part, OneOf):
        learned = [_weights(option) for option in part.options if isinstance(option, LearnedAttention)]
        return {bits: sum(d[bits] for d in learned) / len(learned) for bits in learned[0]} if learned else {}
    quantizers = part.weight_quantizer
    return {bits: _density(q(part.weight)) for bits, q in zip(quantizers.names, quantizers.options, strict=True)}


def _density(x: Tensor) -> float:
    return float(torch.count_nonzero(x)) / max(1, x.numel())
