"""What a test of a family of networks needs: how to build one, how to batch a sample, what one inference costs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCHES = (1, 2, 3, 5, 8)


@dataclass(frozen=True)
class Family:
    """A small network, batches of one and the same sample, and the products of one inference worked out by hand.

    Attributes:
        name: what it is, as it stands in the test's name.
        build: makes the network; takes the batch's size where the network is made for one.
        batch: the positional arguments of a batch of ``n`` inferences.
        macs: multiply-accumulates of one inference.
        told: what a user has to say of the batch, by its size; nothing where the first axis is the batch.
    """

    name: str
    build: Callable[[int], nn.Module]
    batch: Callable[[int], tuple[Any, ...]]
    macs: int
    told: Callable[[int], dict[str, int]] = field(default=lambda n: {})


def copies(*shape: int) -> Callable[[int], tuple[Tensor]]:
    """Batches of a normal sample of this shape, the batch in front."""

    def batch(n: int) -> tuple[Tensor]:
        return (repeated(n, *shape),)

    return batch


def repeated(n: int, *shape: int, axis: int = 0) -> Tensor:
    """``n`` times the same normal sample, along a new axis."""
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return torch.stack([sample] * n, axis)


def words(n: int, length: int, vocabulary: int) -> Tensor:
    """``n`` times the same sentence of token ids, ``[n, length]``."""
    ids = torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(1))
    return ids.repeat(n, 1)


def attention_macs(queries: int, keys: int, width: int) -> int:
    """Four square projections and both products of an attention, whatever its heads."""
    return (2 * queries + 2 * keys) * width * width + 2 * queries * keys * width
