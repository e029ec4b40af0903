"""What both modules for graphs do with nodes."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_effnn._remembered import Remembered
from lightning_effnn.formats.tagging import aside
from lightning_effnn.modules._teaching import divergence


class Graph(Protocol):
    """What a batch of torch-geometric has, as far as it is used here.

    Attributes:
        x: features ``[N, channels]`` of the nodes.
        edge_index: ``[2, E]``, sources and targets.
        y: class of each node, ``[N]``.
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor

    def get(self, key: str, /) -> Tensor | None:
        """Another of its tensors by name, if there is one."""


def parameter_groups(net: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups for Adam: matrices decay, biases don't.

    Args:
        net: with or without quantisers.
        lr: of all parameters.
        weight_decay: of matrices.
    """
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "lr": lr, "weight_decay": weight_decay}, {"params": others, "lr": lr}]


def node_mask(batch: Graph, name: str) -> Tensor | None:
    """Return a graph's mask; None if it has none or no node in it."""
    mask = batch.get(name)
    return mask if mask is not None and bool(mask.any()) else None


def held_out(batch: Graph, mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Split nodes in two, three to one: the same nodes each time; None for a part without any.

    Args:
        batch: a graph; ``n_id`` holds its nodes' numbers where it is a part of a larger one.
        mask: of the nodes to split.
    """
    number = batch.get("n_id")
    number = torch.arange(len(mask), device=mask.device) if number is None else number
    # mixed, for labels may follow the order of the nodes (Knuth, The Art of Computer Programming 3, section 6.4)
    out = mask & ((number * 2654435761 >> 16) % 4 == 0)
    left = mask & ~out
    return left if bool(left.any()) else None, out if bool(out.any()) else None


def node_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy of the nodes in ``mask``."""
    return F.cross_entropy(scores[mask], labels[mask])


def node_accuracy(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the share of the nodes in ``mask`` whose class has the highest score."""
    return (scores[mask].argmax(1) == labels[mask]).float().mean()


class Teacher:
    """A trained network whose scores of all nodes are learned beside the labels; its weights are nobody's to train.

    Args:
        net: from features and edges to scores.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net.eval().requires_grad_(False)
        self._says: Remembered[Tensor] = Remembered()

    def divergence(self, scores: Tensor, batch: Graph) -> Tensor:
        """Return the mean, over nodes, of the divergence of the softmax of ``scores`` from the teacher's.

        Args:
            scores: ``[N, num_classes]``.
            batch: a graph.

        Raises:
            ValueError: the teacher's scores have another shape.
        """
        return divergence(scores, self._says.of(batch.x, lambda: self._scores(batch.x, batch.edge_index)))

    @torch.no_grad()
    def _scores(self, x: Tensor, edge_index: Tensor) -> Tensor:
        with aside():  # what the model costs is not what its teacher does
            scores: Tensor = self.net.to(x.device)(x, edge_index)
        return scores


def step_seed(*numbers: int) -> int:
    """Return a seed that mixes the numbers, the same in every process."""
    return hash(tuple(numbers)) % 2**63
