"""Mini-batches of a graph: some nodes, and a sample of those that reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.data._sampling import seeded


class NeighborSampler:
    """Collate node numbers to the subgraph that computes them: at most ``num_neighbors[h]`` edges into a node at hop h.

    Edges into a node are drawn without replacement, by random numbers that depend on the seed and on the nodes of the
    batch only. ``NeighborLoader`` of torch-geometric does the same where pyg-lib or torch-sparse is installed; neither
    is on every platform.

    Args:
        data: the whole graph, a torch-geometric ``Data``.
        num_neighbors: edges kept into each node, one number a hop; -1 keeps all.
        seed: of the draws.

    Source: Hamilton, Ying and Leskovec (2017), "Inductive Representation Learning on Large Graphs", arXiv 1706.02216.
    """

    def __init__(self, data: Any, num_neighbors: Sequence[int], seed: int) -> None:
        self.data = data
        self.num_neighbors = tuple(num_neighbors)
        self.seed = seed
        source, target = data.edge_index
        order = torch.argsort(target, stable=True)
        self._source = source[order]
        self._start = torch.zeros(data.num_nodes + 1, dtype=torch.long)
        self._start[1:] = torch.bincount(target, minlength=data.num_nodes).cumsum(0)

    def __call__(self, nodes: Sequence[int]) -> Any:
        """Return a ``Data`` with the given nodes first; masks are true at these only, ``n_id`` holds all numbers."""
        generator = seeded(self.seed, *nodes)
        seeds = torch.tensor(nodes)
        known, frontier = seeds, seeds
        sources, targets = [], []
        for most in self.num_neighbors:
            source, target = self._edges_into(frontier, most, generator)
            sources.append(source)
            targets.append(target)
            frontier = torch.unique(source)
            frontier = frontier[~torch.isin(frontier, known)]
            known = torch.cat((known, frontier))
        position = torch.empty(self.data.num_nodes, dtype=torch.long)
        position[known] = torch.arange(len(known))
        part = type(self.data)(
            x=self.data.x[known],
            y=self.data.y[known],
            edge_index=position[torch.stack((torch.cat(sources), torch.cat(targets)))],
            n_id=known,
        )
        for name in ("train_mask", "val_mask", "test_mask"):
            mask = self.data[name][known]
            mask[len(seeds) :] = False
            part[name] = mask
        return part

    def _edges_into(self, nodes: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        degree = self._start[nodes + 1] - self._start[nodes]
        owner = torch.repeat_interleave(torch.arange(len(nodes)), degree)
        rank = torch.arange(len(owner)) - (degree.cumsum(0) - degree)[owner]  # 0, 1, ... within each node
        edge = self._start[nodes][owner] + rank
        if most >= 0:
            # sorted by node, and by chance within it, the first of each node are a draw without replacement
            chance = torch.rand(len(owner), generator=generator, dtype=torch.float64)
            order = torch.argsort(owner + chance)
            kept = order[rank < most]
            edge, owner = edge[kept], owner[kept]
        return self._source[edge], nodes[owner]
