"""Memory of a step of a graph search against that of training the network it found.

    EFFNN_DATA=/path/to/data effnn run benchmarks/search_graph_memory --graph cora --split public
    effnn run benchmarks/search_graph_memory --results my_search_graphs.json

Counted are the bytes of the graph, those kept from the forward pass for the backward pass, and four times the
parameters (weight, gradient, two moments of Adam); of a search, over networks drawn as at its start, in the mean and in
the worst step. The networks that were found are those of the rows of benchmarks/search_graphs in ``--results``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_effnn.data import GraphDataModule
from lightning_effnn.recipes.benchmarks.search_graphs import GRAPHS
from lightning_effnn.search import Controller
from lightning_effnn.search.graph import GraphNet, GraphNetConfig, GraphSpace, SuperGraphNet

RESULTS = Path(__file__).parent / "results" / "search_graphs.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/search_graph_memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--graph", choices=GRAPHS, default="cora")
    parser.add_argument("--split", choices=("public", "random"), default="public")
    parser.add_argument("--draws", type=int, default=60, help="networks of the search")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    try:
        rows = json.loads(args.results.read_text())
        data = GraphDataModule(args.graph, split=args.split)
        data.setup()
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    configs = [GraphNetConfig.from_dict(row["config"]) for row in rows
               if row["graph"] == args.graph and row["split"] == args.split and row["kind"] == "LPGNAS"]  # fmt: skip
    if not configs:
        print(f"error: {args.results} has no row LPGNAS of {args.graph}, {args.split} split", file=sys.stderr)
        return 2
    graph = data.graph
    held = graph.x, graph.edge_index

    def step(scores: Tensor) -> Tensor:
        return F.cross_entropy(scores[graph.train_mask], graph.y[graph.train_mask])

    space = GraphSpace(data.num_features, data.num_classes)
    controller, supernet = Controller(space.options), SuperGraphNet(space).train()
    search = []
    for _ in range(args.draws):
        picks = controller.draw()
        gates = {name: torch.eye(len(options))[picks[name]] for name, options in space.options.items()}
        search.append(_bytes(supernet, held, lambda gates=gates: step(supernet(graph.x, graph.edge_index, gates))))  # type: ignore[misc]
    table = Table(
        title=f"{args.graph}, {args.split} split: a step of the search over one of the network", title_justify="left"
    )
    for heading in ("network found", "its step MB", "search, mean", "search, worst"):
        table.add_column(heading, justify="right")
    for config in dict.fromkeys(configs):
        net = GraphNet(config).train()
        own = _bytes(net, held, lambda net=net: step(net(graph.x, graph.edge_index)))  # type: ignore[misc]
        parts = ", ".join(f"{block.width} {block.attention} {block.aggregation}" for block in config.blocks)
        table.add_row(parts, f"{own / 1e6:.1f}", f"{statistics.mean(search) / own:.2f}", f"{max(search) / own:.2f}")
    Console(width=120).print(table)
    return 0


def _bytes(net: nn.Module, graph: Sequence[Tensor], loss: Callable[[], Tensor]) -> int:
    """Of one training step."""
    parameters = {p.untyped_storage().data_ptr(): p.numel() * p.element_size() for p in net.parameters()}
    kept = {x.untyped_storage().data_ptr(): x for x in graph}  # the tensors too, lest their memory is used again

    def keep(x: Tensor) -> Tensor:
        if x.layout is torch.strided and x.untyped_storage().data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        torch.autograd.backward(loss())
    net.zero_grad()
    return sum(x.untyped_storage().nbytes() for x in kept.values()) + 4 * sum(parameters.values())


if __name__ == "__main__":
    raise SystemExit(main())
