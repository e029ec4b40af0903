"""A guard that knows what natural inputs are like, and refuses what is far out of that.

Analyse the worst case, not the average: a service that has to answer within a budget of energy and time needs a cut-off
(Shumailov et al., 2021, section VII). A guard catches gross sponges only: inputs that are longer, or activations that
are denser, than next to all natural ones. What stays within the profile passes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_effnn._threads import PerThread
from lightning_effnn.formats.tagging import aside
from lightning_effnn.robustness.activations import Activations, as_deployed
from lightning_effnn.robustness.sequences import samples_needed, tolerance_limit

Policy = Literal["raise", "truncate", "flag"]
POLICIES: tuple[str, ...] = get_args(Policy)
_WATCHED = 3
"""Layers whose inputs are looked at."""
_LOOKS = 2048
"""Numbers looked at in each of them, of each input, at least."""
_DENSE = 0.98
"""Density from which on there is nothing to switch on."""


class SpongeError(RuntimeError):
    """An input costs more than the profile of natural inputs allows."""


@dataclass(frozen=True)
class Verdict:
    """What a guard saw in the latest batch of a thread.

    Attributes:
        length: tokens of each input, ``[B]``; for inputs that aren't tokens, their elements; where a model writes,
            tokens of each output.
        density: share of non-zeros that went into the watched layers, ``[B]``; None where they aren't watched.
        refused: ``[B]``, True where one of them is above its limit.
    """

    length: Tensor
    density: Tensor | None
    refused: Tensor


class _Limited(nn.Module):
    """A module with limits, which stay float32 when its model goes to half precision: that would round them."""

    limits: tuple[str, ...]

    def _apply(self, fn: Any, recurse: bool = True) -> _Limited:
        exact = {name: getattr(self, name).clone() for name in self.limits}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, limit in exact.items():
            moved = getattr(self, name)
            if moved.dtype != limit.dtype:
                setattr(self, name, limit.to(moved.device))
        return self


class EnergyGuard(_Limited):
    """A model that looks at how long its inputs and how dense its activations are.

    The limits are buffers, saved with the model. Until :meth:`profile` was called everything passes. Looking at a few
    thousand numbers in three layers costs next to nothing. Several threads may ask one guard: each is told of its own
    batches, and what one watches for a profile is its own; set limits while nobody asks.

    Args:
        model: any module; its first argument is a batch of inputs ``[B, ...]``, of integers for tokens ``[B, T]``.
        policy: what happens to a batch with an input above a limit: ``"raise"`` a :class:`SpongeError` (for length
            before the model runs, for density at the first layer that tells), ``"truncate"`` tokens to the longest
            allowed (density is flagged), or ``"flag"`` it in :attr:`verdict` alone.
        padding: of tokens, not counted; None counts all.

    Raises:
        ValueError: an unknown policy.

    Source: Shumailov et al. (2021), "Sponge Examples", arXiv 2006.03463, section VII.

    >>> guard = EnergyGuard(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), policy="flag")
    >>> guard = guard.profile([torch.rand(300, 4) * (torch.rand(300, 4) > 0.5)], quantile=0.99)
    >>> guard(torch.ones(3, 4)).shape, guard.verdict.density.shape
    (torch.Size([3, 2]), torch.Size([3]))
    """

    limits = ("most_length", "most_density")
    most_length: Tensor
    most_density: Tensor
    profiled: Tensor

    def __init__(self, model: nn.Module, policy: Policy = "raise", padding: int | None = 0) -> None:
        super().__init__()
        check_policy(policy)
        self.model, self.policy, self.padding = model, policy, padding
        self.register_buffer("most_length", torch.tensor(math.inf))
        self.register_buffer("most_density", torch.tensor(math.inf))
        self.register_buffer("profiled", torch.tensor(0))
        self._verdict: PerThread[Verdict] = PerThread()
        self._seen: PerThread[list[tuple[Tensor, Tensor]]] = PerThread()
        names = Activations(model).names
        # the first layer sees the input itself; those in the middle tell most
        step = max(1, len(names) // _WATCHED)
        self._watched = Activations(model, names[step // 2 :: step][:_WATCHED])

    @property
    def verdict(self) -> Verdict | None:
        """Of the latest batch that this thread asked about; None before the first."""
        return self._verdict.value

    @torch.no_grad()
    def profile(self, loader: Iterable[Any], quantile: float = 0.999, confidence: float = 0.95) -> EnergyGuard:
        """Set the limits so that, with the confidence, at most ``1 - quantile`` of inputs like these are refused.

        Length and density share that between them, unless one of them is the same for all inputs. Density isn't looked
        at afterwards if nothing is zero in natural inputs.

        Args:
            loader: of natural inputs, or of batches that begin with them.
            quantile: share that passes, in (0, 1]; 1 lets all of these pass.
            confidence: that no more is refused, in (0, 1).

        Returns:
            Itself.

        Raises:
            ValueError: an empty loader, or an argument out of range.

        Warns:
            UserWarning: fewer inputs than it takes to tell; the largest value seen is the limit then.
        """
        check_shares(quantile, confidence)
        self._seen.value = []
        with as_deployed(self.model):
            for batch in loader:
                x = batch[0] if isinstance(batch, list | tuple) else batch
                with self.watching(x):
                    self.model(x)
        return self.settle(quantile, confidence)

    @contextmanager
    def watching(self, x: Tensor) -> Iterator[None]:
        """Note what a batch is like while somebody else runs the model on it, for :meth:`settle`.

        Args:
            x: natural inputs, ``[B, ...]``.
        """
        with self._watched.collecting() as found:
            yield
        with aside():  # a trace of that run doesn't count what is worked out here
            self._seen.value = [*(self._seen.value or []), (self._length(x), _density(found, x))]

    @torch.no_grad()
    def settle(
        self,
        quantile: float = 0.999,
        confidence: float = 0.95,
        gather: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> EnergyGuard:
        """Set the limits by what this thread watched so far, and forget it: the second half of :meth:`profile`.

        Args:
            quantile, confidence: as there.
            gather: from numbers ``[B]`` of what was watched here to those of all processes.

        Raises:
            ValueError: nothing was watched, or an argument out of range.
        """
        check_shares(quantile, confidence)
        if not self._seen.value:
            raise ValueError("the loader is empty: a profile needs natural inputs")
        length, density = (gather(torch.cat(parts).double()) for parts in zip(*self._seen.value, strict=True))
        self._seen.value = []
        values = {"most_length": length, "most_density": density}
        varying = sum(bool(v.max() > v.min()) for v in values.values())
        for name, seen in values.items():
            getattr(self, name).fill_(_limit(seen, (1 - quantile) / max(1, varying), confidence))
        if float(values["most_density"].min()) >= _DENSE:
            self.most_density.fill_(math.inf)
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
        if math.isinf(self.most_density):  # not profiled, or nothing to see
            self._verdict.value = Verdict(length, None, long)
            return self.model(x, *args, **kwargs)
        with self._watched.collecting() as found:
            result = self.model(x, *args, **kwargs)
        density = _density(found, x)
        dense = density > self.most_density + 1e-6
        self._verdict.value = Verdict(length, density, long | dense)
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


class GenerationGuard(_Limited):
    """A model that writes no more tokens than next to all natural inputs make it write.

    How much an input makes a model write can't be told before it has written; so this one stops it. The limit is a
    buffer, saved with the model. Until :meth:`profile` was called the model's own limit holds.

    Args:
        model: has ``generate(x, limit)``, which returns ids ``[B, S]`` with ``S <= limit``, padded behind the end; a
            limit of None is the model's own.
        end: id of the token that ends an output.
        policy: what happens to a batch with an output that hasn't ended at the limit: ``"raise"`` a
            :class:`SpongeError`, ``"truncate"`` returns it as far as it is, ``"flag"`` goes on to the model's limit.
        padding: id behind the end, not counted.

    Raises:
        ValueError: an unknown policy.
        TypeError: a model that doesn't generate.

    Source: Shumailov et al. (2021), "Sponge Examples", arXiv 2006.03463, section VII.
    """

    limits = ("most_steps",)
    most_steps: Tensor
    profiled: Tensor

    def __init__(self, model: nn.Module, end: int, policy: Policy = "truncate", padding: int = 0) -> None:
        super().__init__()
        check_policy(policy)
        if not callable(getattr(model, "generate", None)):
            raise TypeError(f"{type(model).__name__} has no generate(x, limit): GenerationGuard is for models with one")
        self.model: Any = model
        self.end, self.policy, self.padding = end, policy, padding
        self.register_buffer("most_steps", torch.tensor(math.inf))
        self.register_buffer("profiled", torch.tensor(0))
        self._written: PerThread[Tensor] = PerThread()

    @torch.no_grad()
    def profile(self, loader: Iterable[Any], quantile: float = 0.999, confidence: float = 0.95) -> GenerationGuard:
        """Set the limit so that, with the confidence, at most ``1 - quantile`` of inputs like these are cut short.

        Args:
            loader: of natural inputs, or of batches that begin with them.
            quantile: share that passes, in (0, 1]; 1 lets all of these pass.
            confidence: that no more is refused, in (0, 1).

        Returns:
            Itself.

        Raises:
            ValueError: an empty loader, or an argument out of range.

        Warns:
            UserWarning: fewer inputs than it takes to tell; the largest value seen is the limit then.
        """
        check_shares(quantile, confidence)
        steps = []
        with as_deployed(self.model):
            for batch in loader:
                x = batch[0] if isinstance(batch, list | tuple) else batch
                steps.append(self.model.generate(x, None).ne(self.padding).sum(1))
        if not steps:
            raise ValueError("the loader is empty: a profile needs natural inputs")
        self.most_steps.fill_(_limit(torch.cat(steps).double(), 1 - quantile, confidence))
        self.profiled.fill_(sum(map(len, steps)))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model writes, ``[B, S]``, unless the policy is against it.

        Raises:
            SpongeError: with the policy ``"raise"``, an output that hasn't ended at the limit.
        """
        most = float(self.most_steps)
        limit = None if self.policy == "flag" or math.isinf(most) else int(most)
        written: Tensor = self.model.generate(x, limit)
        self._written.value = written
        if self.policy == "raise" and written.shape[1] >= most and bool(self._endless(written).any()):
            raise SpongeError(f"an output hasn't ended after {int(most)} tokens, the most of natural inputs")
        return written

    @property
    def verdict(self) -> Verdict | None:
        """Of the latest batch that this thread asked about, worked out when it is asked for; None before the first."""
        written = self._written.value
        return None if written is None else Verdict(written.ne(self.padding).sum(1), None, self._endless(written))

    def _endless(self, written: Tensor) -> Tensor:
        """Outputs that hadn't ended at the limit: ``[B]``."""
        within = written if math.isinf(self.most_steps) else written[:, : int(self.most_steps)]
        if within.shape[1] < self.most_steps:  # all have ended, or nothing was profiled
            return torch.zeros(len(within), dtype=torch.bool, device=within.device)
        return ~within.eq(self.end).any(1)


def _density(found: dict[str, list[Tensor]], inputs: Tensor) -> Tensor:
    """Share of non-zeros among the numbers looked at, one for each input."""
    looks = [x.detach().reshape(len(inputs), -1) for tensors in found.values() for x in tensors]
    if not looks:
        return torch.zeros(len(inputs), device=inputs.device)
    seen = torch.cat([rows[:, :: max(1, rows.shape[1] // _LOOKS)] for rows in looks], 1)
    return torch.count_nonzero(seen, 1) / seen.shape[1]


def _limit(values: Tensor, share: float, confidence: float) -> float:
    """The tolerance limit of natural values; the largest if there are too few to tell."""
    if share > 0 and bool(values.max() > values.min()):
        limit = tolerance_limit(values, share, confidence)
        if limit is not None:
            return limit
        warnings.warn(
            f"{len(values)} inputs don't tell what a share of {share:.2g} of all exceeds: at least"
            f" {samples_needed(share, confidence)} are needed; the limit is the largest value seen",
            stacklevel=3,
        )
    return float(values.max())


def check_policy(policy: str) -> None:
    """Refuse what is no policy.

    Raises:
        ValueError: names it.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}: use one of {', '.join(map(repr, POLICIES))}")


def check_shares(quantile: float, confidence: float) -> None:
    """Refuse shares out of range.

    Raises:
        ValueError: names the argument and the value.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile is {quantile!r}: use a share above 0, up to 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}: use a share between 0 and 1")
