"""Graphs whose nodes are to be classified: citations and purchases from npz files, and one made up on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_effnn._lookup import find_file
from lightning_effnn.data._neighbors import NeighborSampler
from lightning_effnn.data._sampling import SeededShuffle, seeded

NAMES = ("cora", "citeseer", "amazon_computers", "cora_ml")
_PLAIN = ("amazon_computers",)  # hundreds of words a node: divided by their sum, a network sees next to nothing
_SHARES = (0.6, 0.2)  # of the nodes, to train and to validate; the rest is the test


class _NodeDataModule(L.LightningDataModule):
    """One graph, given whole to each stage; training may take it in parts."""

    def __init__(self, seed: int, num_neighbors: Sequence[int] | None, batch_size: int) -> None:
        super().__init__()
        if num_neighbors is not None and (not num_neighbors or any(n == 0 or n < -1 for n in num_neighbors)):
            raise ValueError(
                f"num_neighbors is {num_neighbors!r}: use one number a hop, of at least 1, or -1 for all neighbours"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: use a whole number of at least 1")
        self.seed = seed
        self.num_neighbors = num_neighbors
        self.batch_size = batch_size
        self.graph: Any = None

    @property
    def num_features(self) -> int:
        """Width of a node's features."""
        return int(self._graph().x.shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self._graph().y.max()) + 1

    def _graph(self) -> Any:
        self.setup()
        return self.graph

    def setup(self, stage: str | None = None) -> None:
        """Build the graph once, whatever the stage."""
        if self.graph is None:
            self.graph = self._build()

    def _build(self) -> Any:
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Any]:
        """The whole graph; with ``num_neighbors``, subgraphs around training and validation nodes, shuffled."""
        if self.num_neighbors is None:
            return self._whole()
        nodes: Any = (self.graph.train_mask | self.graph.val_mask).nonzero().flatten().tolist()
        return DataLoader(
            nodes,
            batch_size=self.batch_size,
            sampler=SeededShuffle(len(nodes), self.seed),
            collate_fn=NeighborSampler(self.graph, self.num_neighbors, self.seed),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The whole graph."""
        return self._whole()

    def test_dataloader(self) -> DataLoader[Any]:
        """The whole graph."""
        return self._whole()

    def _whole(self) -> DataLoader[Any]:
        graphs: Any = [self.graph]
        return DataLoader(graphs, batch_size=None, collate_fn=_as_it_is)


class GraphDataModule(_NodeDataModule):
    """A citation or purchase graph as a torch-geometric ``Data``: ``x``, ``edge_index``, ``y`` and three masks.

    A file ``graph_<name>.npz`` holds the features as CSR (``x_data``, ``x_indices``, ``x_indptr``, ``x_shape``),
    ``edge_index`` [2, E] with both directions, ``y`` and, for the Planetoid graphs, the public split's masks.
    Features are ``[N, F]`` float32, each row divided by its sum; those of Amazon Computers, words, stay 0 and 1. Every
    loader gives the whole graph once (transductive); the masks say whose labels count.

    Args:
        name: ``"cora"``, ``"citeseer"``, ``"amazon_computers"`` or ``"cora_ml"``.
        split: ``"public"`` (20 training nodes a class; Planetoid graphs only) or ``"random"``, 6 : 2 : 2 of all nodes.
        seed: chooses the random split, and the order of mini-batches.
        root: folder of the files; by default the environment variable ``EFFNN_DATA``.
        num_neighbors: edges kept into each node, one number a hop, -1 for all: training then takes subgraphs around
            ``batch_size`` training and validation nodes; their masks are true at these nodes only. None trains on the
            whole graph.
        batch_size: nodes a mini-batch.

    Raises:
        ValueError: an unknown name or split, or a size below 1; at ``setup``, a public split where there is none.
        FileNotFoundError: at ``setup``, where there is no file.
        ImportError: at ``setup``, without torch-geometric; the message names the extra.

    Source: Yang, Cohen and Salakhutdinov (2016), arXiv 1603.08861 (the public split); Shchur et al. (2018),
    arXiv 1811.05868 (Amazon Computers).

    >>> GraphDataModule("cora", split="random", seed=3).name
    'cora'
    """

    def __init__(
        self,
        name: Literal["cora", "citeseer", "amazon_computers", "cora_ml"] = "cora",
        split: Literal["public", "random"] = "public",
        seed: int = 0,
        root: str | Path | None = None,
        num_neighbors: Sequence[int] | None = None,
        batch_size: int = 512,
    ) -> None:
        super().__init__(seed, num_neighbors, batch_size)
        if name not in NAMES:
            raise ValueError(f"name is {name!r}: use one of {', '.join(NAMES)}")
        if split not in ("public", "random"):
            raise ValueError(f"split is {split!r}: use 'public' or 'random'")
        self.name = name
        self.split = split
        self.root = root

    def _build(self) -> Any:
        data_class = _data_class(type(self).__name__)
        with np.load(find_file(f"graph_{self.name}.npz", self.root), allow_pickle=False) as file:
            x = _dense(file["x_data"], file["x_indices"], file["x_indptr"], file["x_shape"])
            y = torch.from_numpy(file["y"]).long()
            edges = torch.from_numpy(file["edge_index"]).long()
            if self.split == "random":
                masks = _random_masks(len(y), self.seed)
            elif "train_mask" in file:
                masks = {name: torch.from_numpy(file[name]) for name in ("train_mask", "val_mask", "test_mask")}
            else:
                raise ValueError(f"split is 'public', and {self.name} has no public split: use split='random'")
        x = x if self.name in _PLAIN else _row_normalized(x)
        return data_class(x=x, edge_index=edges, y=y, **masks)


class SyntheticGraphDataModule(_NodeDataModule):
    """A stochastic block model with features that depend on the class: seeded, no files.

    Every class is a community. An edge joins two nodes of a class with probability ``degree * homophily`` over the
    class's size, of different classes with the rest. A node has each of the features that are typical of its class with
    probability .3, each other with .05; rows are divided by their sum. Splits are random, 6 : 2 : 2.

    Args:
        num_nodes, num_classes, num_features: sizes.
        degree: edges a node, on average.
        homophily: share of a node's edges within its class, in [0, 1].
        seed: of all of it.
        num_neighbors, batch_size: as in :class:`GraphDataModule`.

    Raises:
        ValueError: a size below 1, or a share outside [0, 1].
        ImportError: at ``setup``, without torch-geometric; the message names the extra.

    Source: Holland, Laskey and Leinhardt (1983), "Stochastic blockmodels: first steps", Social Networks 5.

    >>> data = SyntheticGraphDataModule(num_nodes=50, num_classes=2, num_features=8)
    >>> data.setup()
    >>> graph = next(iter(data.train_dataloader()))
    >>> graph.x.shape, int(graph.train_mask.sum()), data.num_classes
    (torch.Size([50, 8]), 30, 2)
    """

    def __init__(
        self,
        num_nodes: int = 300,
        num_classes: int = 4,
        num_features: int = 32,
        degree: float = 6.0,
        homophily: float = 0.8,
        seed: int = 0,
        num_neighbors: Sequence[int] | None = None,
        batch_size: int = 512,
    ) -> None:
        super().__init__(seed, num_neighbors, batch_size)
        for argument, size in (("num_nodes", num_nodes), ("num_classes", num_classes), ("num_features", num_features)):
            if size < 1:
                raise ValueError(f"{argument} is {size}: use a whole number of at least 1")
        if not 0 <= homophily <= 1:
            raise ValueError(f"homophily is {homophily}: use a share from 0 to 1")
        if degree < 0:
            raise ValueError(f"degree is {degree}: use 0 or more edges a node")
        self.sizes = (num_nodes, num_classes, num_features)
        self.degree = degree
        self.homophily = homophily

    def _build(self) -> Any:
        data_class = _data_class(type(self).__name__)
        nodes, classes, features = self.sizes
        generator = seeded(self.seed)
        y = torch.arange(nodes) % classes
        alike = y[:, None] == y
        within = self.degree * self.homophily / max(nodes / classes, 1)
        across = self.degree * (1 - self.homophily) / max(nodes - nodes / classes, 1)
        joined = torch.rand(nodes, nodes, generator=generator) < torch.where(alike, within, across)
        upper = joined.triu(1)
        typical = torch.arange(features) % classes == y[:, None]
        x = (torch.rand(nodes, features, generator=generator) < torch.where(typical, 0.3, 0.05)).float()
        edges = (upper | upper.T).nonzero().T.contiguous()
        return data_class(x=_row_normalized(x), edge_index=edges, y=y, **_random_masks(nodes, self.seed))


def _as_it_is(graph: Any) -> Any:
    return graph


def _data_class(user: str) -> Callable[..., Any]:
    try:
        from torch_geometric.data import Data
    except ImportError as error:
        raise ImportError(f"{user} needs torch-geometric: pip install 'lightning_effnn[graph]'") from error
    return Data  # type: ignore[no-any-return,unused-ignore]


def _dense(values: np.ndarray, columns: np.ndarray, starts: np.ndarray, shape: np.ndarray) -> Tensor:
    rows = np.repeat(np.arange(shape[0]), np.diff(starts))
    x = np.zeros(tuple(shape), np.float32)
    x[rows, columns] = values
    return torch.from_numpy(x)


def _row_normalized(x: Tensor) -> Tensor:
    return x / x.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _random_masks(nodes: int, seed: int) -> dict[str, Tensor]:
    order = torch.randperm(nodes, generator=seeded(seed, nodes))
    train, val = (round(nodes * share) for share in _SHARES)
    parts = {"train_mask": order[:train], "val_mask": order[train : train + val], "test_mask": order[train + val :]}
    masks = {name: torch.zeros(nodes, dtype=torch.bool) for name in parts}
    for name, index in parts.items():
        masks[name][index] = True
    return masks
