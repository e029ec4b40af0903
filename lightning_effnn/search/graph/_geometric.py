"""The functions of torch-geometric that graph networks are built on, imported when they are first needed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor


@lru_cache(maxsize=1)
def _utils() -> Any:
    try:
        from torch_geometric import utils
    except ImportError as error:
        raise ImportError("graph networks need torch-geometric: pip install 'lightning_effnn[graph]'") from error
    return utils


def require_geometric() -> None:
    """Refuse where torch-geometric is missing.

    Raises:
        ImportError: the message names the extra to install.
    """
    _utils()


def scatter(values: Tensor, index: Tensor, size: int, reduce: str) -> Tensor:
    """Sum, mean or maximum of the rows of ``values`` [E, ...] with the same ``index`` [E]: [size, ...]."""
    result: Tensor = _utils().scatter(values, index, dim=0, dim_size=size, reduce=reduce)
    return result


def softmax(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the rows of ``values`` [E, ...] with the same ``index`` [E]."""
    result: Tensor = _utils().softmax(values, index, num_nodes=size)
    return result


def with_self_loops(edge_index: Tensor, size: int) -> Tensor:
    """Edges [2, E] with exactly one loop at each of ``size`` nodes, behind the others."""
    edges, _ = _utils().remove_self_loops(edge_index)
    result: Tensor = _utils().add_self_loops(edges, num_nodes=size)[0]
    return result
