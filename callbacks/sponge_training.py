"""Train a network whose worst input costs little more than a natural one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_effnn.callbacks._loss_term import AddsToLoss, Term
from lightning_effnn.formats.tagging import aside
from lightning_effnn.robustness.objectives import SIGMA
from lightning_effnn.robustness.training import Inner, SpongePenalty, check_attack


class SpongeTraining(AddsToLoss):
    """Adds to the loss how dense activations are on inputs that were crafted to make them dense.

    Each step a part of the batch is attacked and run once more; the smooth share of non-zeros that goes into its
    layers, times ``weight``, joins the loss of ``training_step``. Statistics of batch norm, and ranges of quantisers,
    are those of natural inputs alone.

    Logged each epoch: ``sponge/penalty``, the mean of that share.

    Args:
        weight: of the density, a share from 0 to 1, against the loss.
        attack: ``"pgd"`` (within ``eps`` of natural inputs), ``"unbounded"`` (from noise, anywhere in the range),
            ``"noise"``, or ``"clean"`` (a penalty on natural inputs, no attack); several take turns.
        eps: largest change of a number.
        steps: of the inner attack.
        share: of each batch that is attacked.
        sigma: magnitude that counts as half a non-zero.
        low, high: range of valid inputs.
        prefix: first part of the logged keys.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: a module with manual optimisation, or a strategy that shards parameters.
        TypeError: in training, batches whose first part is no floating-point tensor.

    Example:
        >>> SpongeTraining(weight=1.0, attack=("pgd", "unbounded"), steps=3).attack
        ('pgd', 'unbounded')

    Source: Madry et al. (2018), arXiv 1706.06083, with the aim of Shumailov et al. (2021), arXiv 2006.03463.
    """

    def __init__(
        self,
        weight: float = 1.0,
        attack: Inner | Sequence[Inner] = ("pgd", "unbounded"),
        eps: float = 8 / 255,
        steps: int = 3,
        share: float = 0.25,
        sigma: float = SIGMA,
        low: float = 0.0,
        high: float = 1.0,
        *,
        prefix: str = "sponge",
    ) -> None:
        if not weight > 0:
            raise ValueError(f"weight={weight!r}: a number above 0 is needed")
        if not low < high:
            raise ValueError(f"low={low!r}, high={high!r}: a range of inputs is needed")
        check_attack(attack, eps, steps, share)
        self.attack = (attack,) if isinstance(attack, str) else tuple(attack)
        self.weight, self.eps, self.steps, self.share = weight, eps, steps, share
        self.sigma, self.low, self.high, self.prefix = sigma, low, high, prefix

    def term(self, trainer: Any, pl_module: Any) -> Term:
        """Return the penalty of a training step's batch."""
        penalty = SpongePenalty(
            pl_module, self.attack, self.eps, self.steps, self.share, self.sigma, self.low, self.high
        )

        def term(batch: Any, *_: Any, **__: Any) -> Tensor | None:
            if not pl_module.training:  # somebody asks for the loss of held-out inputs
                return None
            x = batch[0] if isinstance(batch, list | tuple) else batch
            if not isinstance(x, Tensor) or not x.is_floating_point():
                found = f"tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(
                    f"a batch begins with a {found}: SpongeTraining needs a floating-point tensor of inputs"
                )
            with aside():  # a trace of this training step doesn't count what runs beside it
                value = penalty(x, trainer.global_step)
            name = f"{self.prefix}/penalty"
            pl_module.log(name, value.detach(), on_step=False, on_epoch=True, batch_size=len(x), sync_dist=True)
            return self.weight * value

        return term
