"""Graph networks of four-part blocks: to configure, to train, and to choose among.

Needs torch-geometric (extra ``graph``) from the first network that is built; importing this needs nothing.
"""

from lightning_effnn.search.graph.block import GraphBlock
from lightning_effnn.search.graph.config import BlockConfig, GraphNetConfig
from lightning_effnn.search.graph.costs import COSTS, LogCost, graph_cost
from lightning_effnn.search.graph.layout import graph_sizes
from lightning_effnn.search.graph.net import GraphNet
from lightning_effnn.search.graph.space import GraphSpace
from lightning_effnn.search.graph.supernet import SuperGraphNet

__all__ = [
    "COSTS",
    "BlockConfig",
    "GraphBlock",
    "GraphNet",
    "GraphNetConfig",
    "GraphSpace",
    "LogCost",
    "SuperGraphNet",
    "graph_cost",
    "graph_sizes",
]
