"""Training against sponges: the densest activations an attacker finds are part of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_effnn.quantization import exact_activations, settled_ranges
from lightning_effnn.robustness.activations import as_deployed, natural_statistics
from lightning_effnn.robustness.attacks import Aim, random_inputs
from lightning_effnn.robustness.objectives import SIGMA, Density

Inner = Literal["pgd", "unbounded", "noise", "clean"]
INNER: tuple[str, ...] = get_args(Inner)


class SpongePenalty:
    """Smooth density of the layers' inputs on crafted inputs, to be added to a loss.

    The inner attack takes a part of each batch: ``"pgd"`` moves it by up to ``eps``, ``"unbounded"`` begins with noise
    and may go anywhere in the range, ``"noise"`` is noise, ``"clean"`` leaves it as it is (the penalty that crafted
    inputs are to be better than). Several take turns. Batch norm takes the statistics of the natural part of the batch.
    Where quantisers are attached, their ranges are those of natural inputs too, and the inner attack does without the
    rounding of activations.

    Args:
        model: any module; called with inputs alone.
        attack: one or more of these.
        eps: largest change of a number, for ``"pgd"``.
        steps: of the inner attack, at least 1.
        share: of each batch that is attacked, above 0, up to 1.
        sigma: see :func:`~lightning_effnn.robustness.objectives.smooth_l0`.
        low, high: range of valid inputs.

    Raises:
        ValueError: an argument out of range; a model without layers with weights.

    Source: adversarial training: Madry et al. (2018), arXiv 1706.06083, section 2, with the sponge's aim.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> penalty = SpongePenalty(model, attack="pgd", eps=0.1, steps=2, share=1.0)
    >>> loss = penalty(torch.rand(3, 4), number=0)
    >>> loss.requires_grad, loss.shape
    (True, torch.Size([]))
    """

    def __init__(
        self,
        model: nn.Module,
        attack: Inner | Sequence[Inner] = "pgd",
        eps: float = 8 / 255,
        steps: int = 3,
        share: float = 0.25,
        sigma: float = SIGMA,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        check_attack(attack, eps, steps, share)
        self.attacks = (attack,) if isinstance(attack, str) else tuple(attack)
        self.model, self.eps, self.steps, self.share = model, eps, steps, share
        self.sigma, self.low, self.high = sigma, low, high
        self.density = Density(model, "l0", sigma)

    def __call__(self, x: Tensor, number: int) -> Tensor:
        """Return the mean density of a part of the batch after the attack whose turn it is.

        Args:
            x: ``[B, ...]`` in the range.
            number: of the step: tells whose turn it is, seeds noise.
        """
        attack = self.attacks[number % len(self.attacks)]
        part = x[: max(1, round(self.share * len(x)))]
        both = part if attack == "clean" else torch.cat((part, self.craft(part, attack, number)))
        with (
            self.density.activations.collecting() as found,
            natural_statistics(len(part), len(both)),
            settled_ranges(self.model),
        ):
            self.model(both)
        return self.density.of(found, len(both)).mean()

    def craft(self, x: Tensor, attack: str, seed: int) -> Tensor:
        """Return the inputs that an inner attack makes of ``x``.

        Args:
            x: ``[B, ...]``.
            attack: its name.
            seed: of noise.
        """
        if attack == "noise":
            return random_inputs(x, None, self.low, self.high, seed)
        origin, eps = x.detach(), self.eps
        if attack == "unbounded":
            origin, eps = random_inputs(x, None, self.low, self.high, seed), self.high - self.low
        alpha = min(eps, (self.high - self.low) / 4) / self.steps * 1.5
        with as_deployed(self.model), exact_activations(self.model), torch.enable_grad():
            aim = Aim(self.model, origin, self.density, "", self.sigma)
            aim.counts = True  # the density is a count of zeros
            crafted = origin
            for _ in range(self.steps):
                gradient = aim.gradient(crafted)[1]
                crafted = crafted + alpha * gradient.sign()
                crafted = torch.min(torch.max(crafted, origin - eps), origin + eps).clamp(self.low, self.high)
        return crafted.detach()


def check_attack(attack: object, eps: float, steps: int, share: float) -> None:
    """Refuse arguments out of range.

    Raises:
        ValueError: names the argument, the value and what would be right.
    """
    names = (attack,) if isinstance(attack, str) else attack
    if not isinstance(names, Sequence) or not names or any(name not in INNER for name in names):
        raise ValueError(f"attack is {attack!r}: use one or more of {', '.join(map(repr, INNER))}")
    if not eps > 0:
        raise ValueError(f"eps is {eps!r}: use a number above 0")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}: use a whole number of at least 1")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}: use a share of the batch above 0, up to 1")
