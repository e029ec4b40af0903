"""Random numbers that are as they were after somebody else has drawn some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def random_state_kept(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Give the global random state back as it was: that of the CPU, and of the devices that are named.

    Args:
        devices: on which random numbers are drawn inside, of any kind; those that aren't there have no state.

    >>> with random_state_kept():
    ...     first = torch.rand(2)
    >>> torch.equal(torch.rand(2), first)
    True
    """
    indices: dict[str, set[int]] = {}
    for device in devices:
        if device.type not in ("cpu", "meta") and torch.get_device_module(device.type).is_available():
            indices.setdefault(device.type, set()).add(device.index or 0)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, numbers in indices.items():
            stack.enter_context(torch.random.fork_rng(devices=sorted(numbers), device_type=kind))
        yield
