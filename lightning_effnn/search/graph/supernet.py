"""All networks of a space in one, of which one runs at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_effnn._remembered import Remembered
from lightning_effnn.quantization import TensorQuantizer
from lightning_effnn.search.graph import block as blocks
from lightning_effnn.search.graph._geometric import require_geometric
from lightning_effnn.search.graph.block import BlockParts, GraphBlock, Quantizers
from lightning_effnn.search.graph.config import FULL
from lightning_effnn.search.graph.features import SparseFeatures
from lightning_effnn.search.graph.net import GraphNet, run_blocks
from lightning_effnn.search.graph.parts import Aggregation, Graph, LearnedAttention, RunningMean
from lightning_effnn.search.graph.space import GraphSpace


class Chooses(nn.Module):
    """A module that a gate decides about.

    Attributes:
        choice: the gate's name.
        names: the options.
        gate: a vector over them while the network runs.
    """

    def __init__(self, choice: str, names: tuple[Hashable, ...]) -> None:
        super().__init__()
        self.choice = choice
        self.names = names
        self.gate: Tensor | None = None

    def opened(self) -> list[tuple[int, Tensor | None]]:
        """Numbers of the options to run, each with its weight; None where it is 1 and needs no gradient."""
        if self.gate is None:
            raise RuntimeError(f"{self.choice} has no gate: call the whole network, with its gates")
        found = [number for number, weight in enumerate(self.gate.detach().tolist()) if weight]
        plain = len(found) == 1 and not (self.gate.requires_grad and torch.is_grad_enabled())
        return [(number, None if plain else self.gate[number]) for number in found]

    def settled(self, name: Hashable) -> nn.Module:
        """Return what runs where only the option ``name`` is open."""
        raise NotImplementedError


class OneOf(Chooses):
    """Runs the options whose gates are open, and adds up what they give times the gates.

    An option that gives None stands for ones (coefficients of edges).
    """

    def __init__(self, choice: str, options: Mapping[Any, nn.Module]) -> None:
        super().__init__(choice, tuple(options))
        self.options = nn.ModuleList(options.values())

    def settled(self, name: Hashable) -> nn.Module:
        """Return the option called ``name``."""
        return self.options[self.names.index(name)]

    def forward(self, *inputs: Any) -> Any:
        """Return what the open options give."""
        results = []
        for number, weight in self.opened():
            result = self.options[number](*inputs)
            if weight is None:
                return result
            results.append(weight.view(1, 1) if result is None else result * weight)
        return sum(results[1:], results[0])


class ElasticLinear(Chooses):
    """A product whose first channels are the narrower products."""

    def __init__(self, choice: str, widths: tuple[int, ...], in_channels: int, quantizers: Quantizers) -> None:
        super().__init__(choice, widths)
        self.widths = widths
        self.linear = blocks.linear_part(in_channels, max(widths), quantizers)

    def settled(self, name: Hashable) -> nn.Module:
        """Return the widest product."""
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, widest that is open]; channels that only some open widths have are weighted by these."""
        opened = self.opened()
        h: Tensor = self.linear(x, max(self.widths[number] for number, _ in opened))
        channels = torch.arange(h.shape[-1], device=h.device)
        weights = [(channels < self.widths[number]) * weight for number, weight in opened if weight is not None]
        return h * sum(weights[1:], weights[0]) if weights else h


class UnitScale(nn.Module):
    """What a part gives, divided by its root mean square.

    A sum over neighbours is several times a mean, a softplus is never near zero: without this the weights that are
    shared fit the largest, and the rest is ranked by its scale. A network alone scales its weights.

    Attributes:
        scale: by which the latest result was multiplied.
    """

    scale: Tensor

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, *inputs: Any) -> Tensor:
        """Return the part's result with a mean square of 1; zeros stay zeros."""
        y: Tensor = self.part(*inputs)
        mean_square = y.detach().float().square().mean()
        self.scale = torch.where(mean_square > 0, mean_square.rsqrt(), 1.0)
        return y * self.scale


class MeanAtHand(nn.Module):
    """The mean of each channel over the nodes at hand: a running one would be of other networks.

    Attributes:
        latest: what it was.
    """

    latest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("latest", torch.zeros(1), persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        """Return [channels of y], in its dtype."""
        mean = y.float().mean(0)
        self.latest = mean.detach()
        return mean.to(y.dtype)


class SuperGraphNet(nn.Module):
    """Every network of a space with shared weights: the channels of narrow ones are the first of the wide ones.

    The blocks are those of :class:`~lightning_effnn.search.graph.net.GraphNet`; their parts choose. Only what a gate
    opens runs, so a one-hot gate costs the memory of one network. Quantisers take their steps from the tensor at hand:
    what is rounded changes with every choice before it.

    Args:
        space: what to choose from.

    Raises:
        ImportError: without torch-geometric; the message names the extra.

    Source: single-path one-shot search: Guo et al. (2020), arXiv 1904.00420; for graphs with quantisers Zhao et al.
    (2020), arXiv 2009.09232.

    >>> from lightning_effnn.search.controller import Controller
    >>> space = GraphSpace(5, 3, hidden_channels=(4, 8), w_bits=(2, 4), a_bits=(8,))
    >>> net, controller = SuperGraphNet(space), Controller(space.options)
    >>> net(torch.rand(4, 5), torch.tensor([[0, 1], [1, 2]]), controller.sample()).shape
    torch.Size([4, 3])
    >>> net.derive(controller.chosen()).config.blocks[0].width
    4
    """

    def __init__(self, space: GraphSpace) -> None:
        super().__init__()
        require_geometric()
        self.space = space
        self.features = SparseFeatures()
        self.graphs: Remembered[Graph] = Remembered()
        self.input_quantizer = OneOf("input_a", {bits: _quantizer(bits, signed=None) for bits in space.a_bits})
        in_widths = [space.in_channels, *[max(space.hidden_channels)] * (space.num_layers - 1)]
        self.blocks = nn.ModuleList(_super_block(space, number, width) for number, width in enumerate(in_widths))

    def forward(self, x: Tensor, edge_index: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
        """Return scores [N, num_classes] of the network that the gates open.

        Args:
            x, edge_index: as for ``GraphNet``.
            gates: for each choice of the space a vector over its options.
        """
        choosing = list(self._choosing())
        try:
            for module in choosing:
                module.gate = gates[module.choice]
            return run_blocks(self, self.space.in_channels, x, edge_index)
        finally:
            for module in choosing:
                module.gate = None

    def derive(self, chosen: Mapping[str, Any], graph: tuple[Tensor, Tensor] | None = None) -> GraphNet:
        """Return the network with these options and the weights that it has in here.

        Its quantisers' steps start with the first tensor.

        Args:
            chosen: an option for each choice.
            graph: ``(x, edge_index)`` on which the network is to give the scores that it gives in here, up to its
                quantisers' steps; without it the scale of what is aggregated differs.
        """
        net = GraphNet(self.space.config(chosen)).to(next(self.parameters()).device)
        _copy(self, net, chosen)
        if graph is not None:
            _take_scales(self, net, chosen, graph)
        return net

    def _choosing(self) -> Iterator[Chooses]:
        return (module for module in self.modules() if isinstance(module, Chooses))


def _super_block(space: GraphSpace, number: int, in_channels: int) -> GraphBlock:
    block = f"blocks.{number}"
    options = space.options
    widths = options[f"{block}.width"]

    def quantizers(name: str, signed: bool = True) -> nn.Module:
        choice = f"{block}.{name}"
        return OneOf(choice, {bits: _quantizer(bits, signed) for bits in options[choice]})

    def one_of(part: str, make: Any) -> OneOf:
        return OneOf(f"{block}.{part}", {kind: make(kind) for kind in options[f"{block}.{part}"]})

    widest = max(widths)
    parts = BlockParts(
        linear=ElasticLinear(f"{block}.width", widths, in_channels, quantizers),
        attention=one_of("attention", lambda kind: blocks.attention_part(kind, widest, 1, space.dropout, quantizers)),
        aggregation=UnitScale(one_of("aggregation", Aggregation)),
        skip=one_of("skip", lambda kind: blocks.skip_part(kind, in_channels, widest, quantizers)),
        aggregation_quantizer=quantizers("aggregation_a"),
        activation=one_of("activation", lambda kind: blocks.activation_part(kind, quantizers)),
        mean=MeanAtHand() if space.norm == "mean" else None,
    )
    return GraphBlock(parts, widest, space.dropout)


def _quantizer(bits: int, signed: bool | None) -> nn.Module:
    return nn.Identity() if bits == FULL else TensorQuantizer(bits, scale="dynamic", signed=signed)


def _copy(source: nn.Module, target: nn.Module, chosen: Mapping[str, Any]) -> None:
    """Give a network what it has as a part of a larger one: the first entries along each axis."""
    while isinstance(source, Chooses | UnitScale):
        source = source.part if isinstance(source, UnitScale) else source.settled(chosen[source.choice])
    if isinstance(target, TensorQuantizer | RunningMean):
        return  # they follow the tensors they see
    with torch.no_grad():
        for name, tensor in (*target.named_parameters(recurse=False), *target.named_buffers(recurse=False)):
            kept = tuple(slice(0, size) for size in tensor.shape)
            tensor.copy_(getattr(source, name)[kept])
    for name, child in target.named_children():
        _copy(getattr(source, name) if not isinstance(target, nn.ModuleList) else source[int(name)], child, chosen)  # type: ignore[index]


@torch.no_grad()
def _take_scales(
    net: SuperGraphNet, derived: GraphNet, chosen: Mapping[str, Any], graph: tuple[Tensor, Tensor]
) -> None:
    """Let the weights of each block do what the division by the root mean square did.

    Sums, means and maxima keep a factor of the channels; an attention's scores are brought back by its own weights.
    """
    gates = {
        name: torch.eye(len(options), device=graph[0].device)[options.index(chosen[name])]
        for name, options in net.space.options.items()
    }
    training = net.training
    net.eval()
    net(*graph, gates)
    net.train(training)
    for source, target in zip(net.blocks, derived.blocks, strict=True):
        source, target = cast(Any, source), cast(Any, target)
        scale: Tensor = source.aggregation.scale
        target.linear.weight.mul_(scale)
        if target.mean is not None:
            target.mean.value.copy_(source.mean.latest)
        if isinstance(target.attention, LearnedAttention):
            for name, vector in zip(target.attention.names, target.attention.weight, strict=True):
                if name != "a":
                    vector.div_(scale)
