r"""One choice among several, made differentiable: which options run, and how gradients reach their logits.

A *gate* is a vector over the options that a network multiplies its options with. ``top1`` opens one gate, so that one
option runs and only its memory is held; ``mixture`` opens all, weighted by their probabilities.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Relaxation = Literal["top1", "mixture"]
RELAXATIONS: tuple[str, ...] = ("top1", "mixture")


def gumbel_noise(shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
    """Return independent draws of the standard Gumbel distribution.

    Args:
        shape: of the result.
        generator: of the random numbers, which lie where it is; the CPU's global one if None.

    Source: Gumbel (1954); Maddison, Mnih and Teh (2017), "The Concrete Distribution", arXiv 1611.00712, section 2.2.

    >>> gumbel_noise(torch.Size([2]), torch.Generator().manual_seed(0)).shape
    torch.Size([2])
    """
    tiny = torch.finfo(torch.float32).tiny
    device = torch.device("cpu") if generator is None else generator.device
    exponential = -torch.log(torch.rand(shape, generator=generator, device=device).clamp(min=tiny))
    return -torch.log(exponential.clamp(min=tiny))


def top1(
    logits: Tensor, temperature: float = 1.0, noise: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    r"""Return a one-hot gate, drawn with Gumbel noise; its gradient is that of the tempered softmax.

    .. math:: k = \arg\max_i (l_i + \nu g_i), \qquad
              \frac{\partial\, gate}{\partial l} = \frac{\partial}{\partial l} softmax((l + \nu g) / \tau)

    With noise 1 option :math:`i` is drawn with probability :math:`softmax(l)_i`; with noise 0 the most probable one.

    Args:
        logits: ``[n]``.
        temperature: :math:`\tau`, above 0; a low one has steep gradients near a tie and none elsewhere.
        noise: :math:`\nu`, 0 or more.
        generator: of the noise; one on the CPU draws the same for every device.

    Returns:
        ``[n]``: exactly one 1, the rest exactly 0.

    Raises:
        ValueError: a temperature that is not above 0, or a noise below 0.

    Source: Jang, Gu and Poole (2017), "Categorical Reparameterization with Gumbel-Softmax", arXiv 1611.01144
    (straight-through variant); used with one path by Zhao et al. (2020), arXiv 2009.09232.

    >>> top1(torch.tensor([0.0, 2.0, 1.0]), noise=0.0)
    tensor([0., 1., 0.])
    """
    _check(temperature, noise)
    if noise:
        logits = logits + noise * gumbel_noise(logits.shape, generator).to(logits)
    soft = torch.softmax(logits / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())  # in this order the sum is exactly hard


def mixture(
    logits: Tensor, temperature: float = 1.0, noise: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Return the tempered softmax as a gate: every option runs, weighted.

    Args:
        logits, temperature, noise, generator: as in :func:`top1`.

    Returns:
        ``[n]`` of sum 1.

    Raises:
        ValueError: as in :func:`top1`.

    Source: Liu, Simonyan and Yang (2019), "DARTS", arXiv 1806.09055, section 2.2.

    >>> mixture(torch.zeros(4)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    _check(temperature, noise)
    if noise:
        logits = logits + noise * gumbel_noise(logits.shape, generator).to(logits)
    return torch.softmax(logits / temperature, dim=-1)


def annealed(start: float, end: float, progress: float) -> float:
    """Return a value on the way from ``start`` to ``end``: geometric between positive numbers, else linear.

    Args:
        start, end: first and last value.
        progress: share of the way, clipped to [0, 1].

    >>> annealed(4.0, 1.0, 0.5), annealed(1.0, 0.0, 0.25), annealed(1.0, 0.0, 2.0)
    (2.0, 0.75, 0.0)
    """
    progress = min(max(progress, 0.0), 1.0)
    if start > 0 and end > 0:
        return float(start ** (1 - progress) * end**progress)
    return start + (end - start) * progress


def _check(temperature: float, noise: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}: use a number above 0")
    if not noise >= 0:
        raise ValueError(f"noise is {noise!r}: use 0 or more")
