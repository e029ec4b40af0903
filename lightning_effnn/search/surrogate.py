r"""What each option does to a loss, learned from networks that were tried.

The gradient of one sampled network's loss to its gates says what scaling an output would do, not what another option
would; that of the loss times the log-probability says the right thing, buried in the noise of all other choices. A
linear model of all networks tried so far takes the others' part out:

.. math:: loss(network) \approx c + \sum_{choices} w_{choice}[option]
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

_PRIOR_TRIES = 20.0
"""Tries that the prior (no option makes a difference of its own) weighs as much as."""
_SLOPE_TRIES = 5.0
"""Likewise, for the prior that a feature makes no difference."""


class AdditiveSurrogate(nn.Module):
    """Ridge regression of a loss on one-hot choices, recent tries weighing more.

    All it knows is in its ``state_dict``. What was tried seldom is taken to make little difference, or as much as its
    features let expect: a feature is a number that is known of each option beforehand (the error of rounding to so many
    bits), and one slope, never negative, is learned for each from all tries. So few tries go a long way.

    Args:
        options: of each choice, by the choice's name.
        memory: tries after which one counts for a third, above 1.
        features: for any choices, the features of their options, ``[features, options]``; 0 or more.

    Raises:
        ValueError: a memory that is not above 1, or features of another shape.

    Source: Hoerl and Kennard (1970), "Ridge regression", Technometrics 12; exponential forgetting as in recursive least
    squares.

    >>> surrogate = AdditiveSurrogate({"bits": (2, 8)})
    >>> for _ in range(40):
    ...     surrogate.observe({"bits": torch.tensor([1.0, 0.0])}, 0.5)
    ...     surrogate.observe({"bits": torch.tensor([0.0, 1.0])}, 0.1)
    >>> [round(w, 2) for w in surrogate.effects()["bits"].tolist()]
    [0.15, -0.15]
    """

    count: Tensor
    mean: Tensor
    moments: Tensor
    sums: Tensor
    average: Tensor
    features: Tensor

    def __init__(
        self,
        options: Mapping[str, Sequence[Hashable]],
        memory: float = 200.0,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not memory > 1:
            raise ValueError(f"memory is {memory!r}: use more than 1")
        self.sizes = {name: len(names) for name, names in options.items()}
        self.keep = 1 - 1 / memory
        length = sum(self.sizes.values())
        for name, shape in (("count", ()), ("mean", ()), ("average", (length,)), ("sums", (length,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("moments", torch.zeros(length, length, dtype=torch.float64))
        self.register_buffer("features", self._rows(features or {}).to(self.sums.device))

    def _rows(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features of all options, one row each, as shares of its largest value."""
        count = max((len(values) for values in features.values()), default=0)
        for name, values in features.items():
            if values.shape != (count, self.sizes.get(name)):
                raise ValueError(
                    f"features of {name!r} have the shape {tuple(values.shape)}: [features, options] are needed"
                )
        rows = torch.zeros(count, sum(self.sizes.values()), dtype=torch.float64, device="cpu")
        for name, columns in zip(self.sizes, torch.split(rows, list(self.sizes.values()), 1), strict=True):
            if name in features:
                columns.copy_(features[name])
        return rows / rows.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny) if count else rows

    @torch.no_grad()
    def observe(self, gates: Mapping[str, Tensor], loss: float) -> None:
        """Add a network that was tried.

        Args:
            gates: one-hot, for each choice.
            loss: of the network, finite.
        """
        x = torch.cat([gates[name].detach().to(self.sums) for name in self.sizes])
        self.count.mul_(self.keep).add_(1)
        self.mean.mul_(self.keep).add_(loss)
        self.average.mul_(self.keep).add_(x)
        self.sums.mul_(self.keep).add_(loss * x)
        self.moments.mul_(self.keep).add_(torch.outer(x, x))

    @torch.no_grad()
    def effects(self) -> dict[str, Tensor]:
        """Return for each choice what each option adds to the loss, against the mean of the networks tried."""
        count = self.count.clamp(min=1)
        average, mean = self.average / count, self.mean / count
        covariance = self.moments - count * torch.outer(average, average)
        right = self.sums - count * average * mean
        # Each option weighs about its share of the tries, so the prior does too.
        prior = torch.diag(torch.cat([right.new_full((n,), _PRIOR_TRIES / n) for n in self.sizes.values()]))
        rows = self.features
        while True:
            slopes = torch.einsum("fi,ij,gj->fg", rows, covariance, rows)
            slopes += torch.diag(slopes.diagonal() * _SLOPE_TRIES / count)
            mixed = covariance @ rows.T
            system = torch.cat((torch.cat((covariance + prior, mixed), 1), torch.cat((mixed.T, slopes), 1)))
            system.diagonal()[len(prior) :].clamp_(min=1e-12)  # a feature that was the same in all tries
            solution = torch.linalg.solve(system, torch.cat((right, rows @ right)))
            weights, slope = solution[: len(prior)], solution[len(prior) :]
            if not bool((slope < 0).any()):
                break
            rows = rows[slope >= 0]  # what costs more than nothing can't help; without it the others are anew
        weights = weights + rows.T @ slope
        return dict(zip(self.sizes, weights.split(list(self.sizes.values())), strict=True))

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expected loss against the mean of the networks tried, a scalar with a gradient.

        Args:
            probabilities: for each choice a vector over its options.
        """
        parts = [
            (probabilities[name] * effect.to(probabilities[name])).sum() for name, effect in self.effects().items()
        ]
        return torch.stack(parts).sum()
