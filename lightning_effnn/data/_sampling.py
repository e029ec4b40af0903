"""A shuffle that depends on nothing but the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class SeededShuffle(Sampler[int]):
    """A permutation of ``range(length)``, another one each epoch.

    The trainer calls :meth:`set_epoch` before each epoch, so a fit that is resumed at epoch ``n``
    sees the batches an uninterrupted one sees, and no other use of the global generator moves them.

    >>> shuffle = SeededShuffle(5, seed=0)
    >>> first = list(shuffle)
    >>> sorted(first), list(shuffle) == first
    ([0, 1, 2, 3, 4], True)
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.length, generator=seeded(self.seed, self.epoch)).tolist())


def seeded(*numbers: int) -> torch.Generator:
    """Return a generator whose seed mixes the numbers; other numbers give an unrelated stream.

    >>> torch.rand(1, generator=seeded(1, 2)) == torch.rand(1, generator=seeded(2, 1))
    tensor([False])
    """
    mixed = hash(tuple(numbers)) % 2**63
    return torch.Generator().manual_seed(mixed)
