"""What a graph network keeps and multiplies, from its configuration alone."""

from __future__ import annotations

from lightning_effnn.search.graph.config import FULL, WITHOUT_WEIGHTS, BlockConfig, GraphNetConfig
from lightning_effnn.search.sizes import Sizes, Stored

_VECTORS = {"linear": 1, "gen_linear": 3}
"""Vectors of weights of an attention; two for the others that have any."""
_STEPS = 4  # of a block: linear, attention, aggregation, activation


def graph_sizes(config: GraphNetConfig, nodes: int, edges: int) -> Sizes:
    """Return the sizes of a network on a graph.

    Messages are not counted: a chip adds them up as they are made. Edges are not counted either.

    Args:
        config: of the network.
        nodes, edges: of the graph; one edge at each node itself counts as an edge.

    >>> sizes = graph_sizes(GraphNetConfig.gcn(1433, 7, w_bits=4, a_bits=8), nodes=2708, edges=13264)
    >>> sizes.weight_bits, round(sizes.bits_per_weight, 2), round(sizes.buffer_bits / 8e6, 2)
    (92896, 4.03, 4.07)
    """
    weights: list[Stored] = []
    features = Stored("input", nodes * config.in_channels, config.input_a, (0, _last_read(config.blocks[0], 0)))
    buffers = [features]
    for number, (block, in_channels) in enumerate(zip(config.blocks, config.in_widths, strict=True)):
        weights += block_weights(block, in_channels, f"blocks.{number}")
        following = config.blocks[number + 1] if number + 1 < len(config.blocks) else None
        buffers += block_buffers(block, nodes, edges, number, following)
    return Sizes(weights, buffers)


def block_weights(block: BlockConfig, in_channels: int, name: str) -> list[Stored]:
    """Return the weights of a block."""
    found = [Stored(f"{name}.linear", in_channels * block.width, block.linear_w)]
    if block.skip == "linear":
        found.append(Stored(f"{name}.skip", in_channels * block.width, block.linear_w))
    if block.attention not in WITHOUT_WEIGHTS:
        found.append(Stored(f"{name}.attention", _VECTORS.get(block.attention, 2) * block.width, block.attention_w))
    return [*found, Stored(f"{name}.bias", block.width, FULL)]


def block_buffers(
    block: BlockConfig, nodes: int, edges: int, number: int = 0, following: BlockConfig | None = None
) -> list[Stored]:
    """Return what a block writes, with the steps at which it is there."""
    name, step, size = f"blocks.{number}", number * _STEPS, nodes * block.width
    found = [Stored(f"{name}.linear", size, block.linear_a, (step, step + 2))]
    if block.attention != "none":
        found.append(Stored(f"{name}.attention", edges * block.heads, block.attention_a, (step + 1, step + 2)))
    if block.skip == "linear":
        found.append(Stored(f"{name}.skip", size, block.linear_a, (step + 2, step + 2)))
    found.append(Stored(f"{name}.aggregation", size, block.aggregation_a, (step + 2, step + 3)))
    if block.activation != "none":
        last = step + 3 if following is None else _last_read(following, number + 1)
        found.append(Stored(f"{name}.activation", size, block.activation_a, (step + 3, last)))
    return found


def product_bops(block: BlockConfig, in_channels: int, in_bits: int, nodes: int) -> int:
    """Return the bit operations of a block's products with weights: multiplications times the bits of both factors.

    Source: Baskin et al. (2021), "UNIQ", arXiv 1804.10969, section 4, without the accumulator's share.
    """
    products = 2 if block.skip == "linear" else 1
    return products * nodes * in_channels * block.width * block.linear_w * in_bits


def message_bops(block: BlockConfig, edges: int) -> int:
    """Return the bit operations of a block's messages; without coefficients a message is added, a factor of one bit."""
    coefficient = 1 if block.attention == "none" else block.attention_a
    return edges * block.width * block.linear_a * coefficient


def _last_read(block: BlockConfig, number: int) -> int:
    """The step at which a block reads its input for the last time."""
    return number * _STEPS + (2 if block.skip == "linear" else 0)
