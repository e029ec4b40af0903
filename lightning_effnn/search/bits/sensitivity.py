r"""How much the loss minds the error of rounding each tensor, learned from tries with random bits.

.. math:: loss(bits) \approx c + \sum_{tensors} s_t \, e_t(bits_t), \qquad s_t \ge 0

:math:`e_t` is the relative squared error of rounding tensor :math:`t`, which is known of each number of bits;
:math:`s_t`, how much that matters, is learned. So a few hundred losses are enough for a model of dozens of tensors, and
more bits are never taken to be worse than fewer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_PRIOR_TRIES = 20.0
"""Tries that the prior (all tensors of a kind are equally sensitive) weighs as much as."""
_KIND_TRIES = 5.0
"""Likewise, for the prior that a kind of tensors doesn't matter."""


class Sensitivity(nn.Module):
    """Ridge regression of a loss on errors of rounding, recent tries weighing more.

    All it knows is in its ``state_dict``. A tensor that was tried seldom is taken to be as sensitive as the others of
    its kind.

    Args:
        errors: of each tensor, the error with each option; tensors of one kind have the same name up to the first
            slash.
        memory: tries after which one counts for a third, above 1.

    Raises:
        ValueError: a memory that is not above 1.

    Source: a loss as a sum of errors times sensitivities: Dong et al. (2020), "HAWQ-V2", arXiv 1911.03852, section 3,
    with the Hessian's trace for the sensitivity; the regression is that of Hoerl and Kennard (1970), Technometrics 12.

    >>> found = Sensitivity({"weights/a": torch.tensor([0.2, 0.0]), "weights/b": torch.tensor([0.2, 0.0])})
    >>> for _ in range(100):
    ...     for a in (0, 1):
    ...         for b in (0, 1):
    ...             found.observe({"weights/a": a, "weights/b": b}, 1.0 if a == 0 else 0.0)
    >>> [round(s, 1) for s in found.sensitivities().tolist()]  # only the first one's error adds to the loss
    [4.8, 0.1]
    """

    count: Tensor
    mean: Tensor
    average: Tensor
    sums: Tensor
    moments: Tensor

    def __init__(self, errors: Mapping[str, Tensor], memory: float = 1000.0) -> None:
        super().__init__()
        if not memory > 1:
            raise ValueError(f"memory is {memory!r}: use more than 1")
        self.errors = {name: values.detach().double().cpu() for name, values in errors.items()}
        self.keep = 1 - 1 / memory
        kinds = [name.split("/")[0] for name in errors]
        rows = [[float(kind == one) for kind in kinds] for one in dict.fromkeys(kinds)]
        self._kinds = torch.tensor(rows, dtype=torch.float64, device="cpu")
        length = len(self.errors)
        for name, shape in (("count", ()), ("mean", ()), ("average", (length,)), ("sums", (length,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device="cpu"))
        self.register_buffer("moments", torch.zeros(length, length, dtype=torch.float64, device="cpu"))

    @torch.no_grad()
    def observe(self, picks: Mapping[str, int], loss: float) -> None:
        """Add a try.

        Args:
            picks: the number of the option of each tensor.
            loss: with these, finite.
        """
        x = torch.stack([values[picks[name]] for name, values in self.errors.items()])
        self.count.mul_(self.keep).add_(1)
        self.mean.mul_(self.keep).add_(loss)
        self.average.mul_(self.keep).add_(x)
        self.sums.mul_(self.keep).add_(loss * x)
        self.moments.mul_(self.keep).add_(torch.outer(x, x))

    @torch.no_grad()
    def sensitivities(self) -> Tensor:
        """Return for each tensor by how much the loss rises with its error, ``[tensors]``, none below 0."""
        count = self.count.clamp(min=1)
        average, mean = self.average / count, self.mean / count
        covariance = self.moments - count * torch.outer(average, average)
        right = self.sums - count * average * mean
        # what the tries would tell of each tensor if all options were tried alike
        spread = torch.stack([values.var(correction=0) for values in self.errors.values()]).clamp(min=1e-12)
        own = covariance + torch.diag(_PRIOR_TRIES * spread)
        shared = self._kinds @ covariance @ self._kinds.T + torch.diag(_KIND_TRIES * (self._kinds @ spread))
        mixed = covariance @ self._kinds.T
        system = torch.cat((torch.cat((own, mixed), 1), torch.cat((mixed.T, shared), 1)))
        solution = torch.linalg.solve(system, torch.cat((right, self._kinds @ right)))
        found: Tensor = solution[: len(right)] + self._kinds.T @ solution[len(right) :]
        return found.clamp(min=0)

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expected loss against that without rounding, a scalar with a gradient.

        Args:
            probabilities: for each tensor a vector over its options.
        """
        parts = [
            (probabilities[name] * (sensitivity * values).to(probabilities[name])).sum()
            for (name, values), sensitivity in zip(self.errors.items(), self.sensitivities(), strict=True)
        ]
        return torch.stack(parts).sum()
