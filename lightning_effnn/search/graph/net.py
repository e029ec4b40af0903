"""A graph network with its choices made: plain PyTorch on torch-geometric's functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_effnn._remembered import Remembered
from lightning_effnn._weights import load_weights_
from lightning_effnn.formats.tagging import listeners
from lightning_effnn.quantization import TensorQuantizer
from lightning_effnn.search.graph._geometric import require_geometric
from lightning_effnn.search.graph.block import GraphBlock
from lightning_effnn.search.graph.config import FULL, GraphNetConfig
from lightning_effnn.search.graph.features import SparseFeatures
from lightning_effnn.search.graph.parts import Graph


class GraphNet(nn.Module):
    """Scores for each node from the features of all nodes and the edges between them.

    Each node has one edge to itself, whatever loops the graph has: a node without neighbours sees itself, a graph
    without edges is a network on each node alone.

    Args:
        config: every choice; also a mapping, or the path of a YAML file.
        weights: safetensors file to load, a path or a name in the folder that the variable ``EFFNN_DATA`` names.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ImportError: without torch-geometric; the message names the extra.
        ValueError: a configuration that is none, or weights of other names or shapes.

    Source: the blocks are those of Zhao et al. (2020), arXiv 2009.09232, as far as its abstract says.

    >>> import torch
    >>> net = GraphNet(GraphNetConfig.gcn(5, 3, width=8, w_bits=4, a_bits=8))
    >>> net(torch.rand(4, 5), torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
    torch.Size([4, 3])
    """

    def __init__(
        self, config: GraphNetConfig | Mapping[str, Any] | str | Path, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        require_geometric()
        if isinstance(config, str | Path):
            config = GraphNetConfig.from_yaml(Path(config))
        elif isinstance(config, Mapping):
            config = GraphNetConfig.from_dict(config)
        self.config = config
        self.features = SparseFeatures()
        self.graphs: Remembered[Graph] = Remembered()
        self.input_quantizer = input_quantizer(config.input_a)
        self.blocks = nn.ModuleList(
            GraphBlock.from_config(block, in_channels, config.dropout, norm=config.norm)
            for block, in_channels in zip(config.blocks, config.in_widths, strict=True)
        )
        if weights is not None:
            load_weights_(self, weights)

    @classmethod
    def from_config(
        cls, config: GraphNetConfig | Mapping[str, Any] | str | Path, weights: str | Path | None = None
    ) -> GraphNet:
        """Build the network that a configuration describes.

        Args:
            config, weights: as for the class.
        """
        return cls(config, weights)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return scores [N, num_classes], float32 whatever the autocast.

        Args:
            x: [N, in_channels] features.
            edge_index: [2, E] from source to target.

        Raises:
            ValueError: features of another width, or edges that are no [2, E].
        """
        return run_blocks(self, self.config.in_channels, x, edge_index)


def run_blocks(net: Any, in_channels: int, x: Tensor, edge_index: Tensor) -> Tensor:
    """Features, blocks, scores: what a network and a network to be chosen have in common."""
    if x.dim() != 2 or x.shape[1] != in_channels:
        raise ValueError(f"x has the shape {tuple(x.shape)}: [nodes, {in_channels}] is needed")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index has the shape {tuple(edge_index.shape)}: [2, edges] is needed")
    graph = _graph(net.graphs, edge_index, len(x))
    x = net.features.quantized(x, net.input_quantizer)
    for block in net.blocks:
        x = block(x, graph)
    return x.float()


def _graph(known: Remembered[Graph], edge_index: Tensor, nodes: int) -> Graph:
    if listeners():  # a trace sees how the loops are added
        return Graph.of(edge_index, nodes)
    graph = known.of(edge_index, lambda: Graph.of(edge_index, nodes))
    return graph if graph.nodes == nodes else Graph.of(edge_index, nodes)


def input_quantizer(bits: int) -> nn.Module:
    """Return what rounds the features, whatever their signs."""
    return nn.Identity() if bits == FULL else TensorQuantizer(bits)
