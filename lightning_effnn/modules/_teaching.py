"""What modules that learn from a teacher beside the labels have in common."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(scores: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean divergence of the softmax of ``scores`` from the teacher's, in float32.

    It is multiplied by the squared temperature, which keeps gradients of one size.

    Args:
        scores: ``[N, num_classes]``.
        teacher: the teacher's scores, likewise, without a gradient.
        temperature: by which both are divided.

    Raises:
        ValueError: the teacher's scores have another shape.

    Source: Hinton, Vinyals and Dean (2015), arXiv 1503.02531, section 2.

    >>> import torch
    >>> divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    tensor(0.)
    """
    if teacher.shape != scores.shape:
        raise ValueError(f"the teacher's scores have the shape {tuple(teacher.shape)}: {tuple(scores.shape)} is needed")
    ours, theirs = (F.log_softmax(s.float() / temperature, 1) for s in (scores, teacher))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
