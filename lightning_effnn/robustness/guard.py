"""A guard that knows what natural inputs are like, and refuses what is far out of that.

Analyse the worst case, not the average: a service that has to answer within a budget of energy and time needs a cut-off
(Shumailov et al., 2021, section VII). A guard catches gross sponges only: inputs that are longer, or activations that
are denser, than next to all natural ones. What stays within the profile passes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_effnn.robustness.activations import Activations, as_deployed

Policy = Literal["raise", "truncate", "flag"]
POLICIES: tuple[str, ...] = get_args(Policy)
_WATCHED = 3
"""Layers whose inputs are looked at."""
_LOOKS = 2048
"""Numbers looked at in each of them, of each input."""


class SpongeError(RuntimeError):
    """An input costs more than the profile of natural inputs allows."""


@dataclass(frozen=True)
class Verdict:
    """What a guard saw in the latest batch.

    Attributes:
        length: tokens of each input, ``[B]``; for inputs that aren't tokens, their elements.
        density: share of non-zeros that went into the watched layers, ``[B]``.
        refused: ``[B]``, True where one of them is above its limit.
    """

    length: Tensor
    density: Tensor
    refused: Tensor


class EnergyGuard(nn.Module):
    """A model that looks at how long its inputs and how dense its activations are.

    The limits are buffers, saved with the model. Until :meth:`profile` was called everything passes. Looking at a few
    thousand numbers in three layers costs next to nothing.

    Args:
        model: any module; its first argument is a batch of inputs ``[B, ...]``, of integers for tokens ``[B, T]``.
        policy: what happens to a batch with an input above a limit: ``"raise"`` a :class:`SpongeError` (for length
            before the model runs, for density at the first layer that tells), ``"truncate"`` tokens to the longest
            allowed (density is flagged), or ``"flag"`` it in :attr:`verdict` alone.
        padding: of tokens, not counted; None counts all.

    Attributes:
        verdict: of the latest batch.

    Raises:
        ValueError: an unknown policy.

    Source: Shumailov et al. (2021), "Sponge Examples", arXiv 2006.03463, section VII.

    >>> guard = EnergyGuard(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), policy="flag")
    >>> guard = guard.profile([torch.rand(200, 4) * (torch.rand(200, 4) > 0.5)], quantile=0.99)
    >>> guard(torch.ones(3, 4)).shape, guard.verdict.density.shape
    (torch.Size([3, 2]), torch.Size([3]))
    """

    most_length: Tensor
    most_density: Tensor
    profiled: Tensor

    def __init__(self, model: nn.Module, policy: Policy = "raise", padding: int | None = 0) -> None:
        super().__init__()
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}: use one of {', '.join(map(repr, POLICIES))}")
        self.model, self.policy, self.padding = model, policy, padding
        self.register_buffer("most_length", torch.tensor(math.inf))
        self.register_buffer("most_density", torch.tensor(math.inf))
        self.register_buffer("profiled", torch.tensor(0))
        self.verdict: Verdict | None = None
        names = Activations(model).names
        # the first layer sees the input itself; those in the middle tell most
        step = max(1, len(names) // _WATCHED)
        self._watched = Activations(model, names[step // 2 :: step][:_WATCHED])

    @torch.no_grad()
    def profile(self, loader: Iterable[Any], quantile: float = 0.999) -> EnergyGuard:
        """Set the limits so that a share of ``1 - quantile`` of inputs like these is refused by each of them.

        Args:
            loader: of natural inputs, or of batches that begin with them.
            quantile: share that passes, in (0, 1]; 1 lets all of these pass.

        Returns:
            Itself.

        Raises:
            ValueError: an empty loader, or a quantile out of range.

        Warns:
            UserWarning: fewer inputs than it takes to tell such a quantile; the largest value seen is the limit then.
        """
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile is {quantile!r}: use a share above 0, up to 1")
        lengths, densities = [], []
        with as_deployed(self.model):
            for batch in loader:
                x = batch[0] if isinstance(batch, list | tuple) else batch
                with self._watched.collecting() as found:
                    self.model(x)
                lengths.append(self._length(x))
                densities.append(_density(found, len(x)))
        if not lengths:
            raise ValueError("the loader is empty: a profile needs natural inputs")
        length, dense = torch.cat(lengths).double(), torch.cat(densities).double()
        if quantile < 1 and len(length) * (1 - quantile) < 1:
            warnings.warn(
                f"{len(length)} inputs don't tell their quantile {quantile}: at least"
                f" {math.ceil(1 / (1 - quantile))} are needed; the limits are the largest values seen",
                stacklevel=2,
            )
        for limit, values in ((self.most_length, length), (self.most_density, dense)):
            limit.fill_(float(torch.quantile(values, quantile, interpolation="higher")))
        self.profiled.fill_(len(length))
        return self

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the model, unless the policy is against it.

        Raises:
            SpongeError: with the policy ``"raise"``, an input above a limit.
        """
        length = self._length(x)
        long = length > self.most_length
        if bool(long.any()):
            if self.policy == "raise":
                raise SpongeError(
                    f"an input has {int(length.max())} tokens: {int(self.most_length)} are the most of natural inputs"
                )
            if self.policy == "truncate" and not x.is_floating_point():
                x = x[:, : int(self.most_length)]
        with self._watched.collecting() as found:
            result = self.model(x, *args, **kwargs)
        density = _density(found, len(x))
        dense = density > self.most_density + 1e-6
        self.verdict = Verdict(length, density, long | dense)
        if self.policy == "raise" and bool(dense.any()):
            raise SpongeError(
                f"activations of an input are {float(density.max()):.1%} non-zero: natural inputs have up to"
                f" {float(self.most_density):.1%}"
            )
        return result

    def _length(self, x: Tensor) -> Tensor:
        if x.is_floating_point() or self.padding is None:
            return torch.full((len(x),), x[0].numel() if x.is_floating_point() else x.shape[1], device=x.device)
        return x.ne(self.padding).sum(1)


def _density(found: dict[str, list[Tensor]], inputs: int) -> Tensor:
    shares = []
    for tensors in found.values():
        for x in tensors:
            rows = x.detach().reshape(inputs, -1)
            shares.append(rows[:, :: max(1, rows.shape[1] // _LOOKS)].ne(0).float().mean(1))
    return torch.stack(shares).mean(0) if shares else torch.zeros(inputs)
