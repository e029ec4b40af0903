"""Derivatives of any module by its coordinates: forward Taylor mode where every step has a rule, else autograd."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.pde.indices import Derivative, Index, Indices
from lightning_effnn.pde.jets import Jet, NoRule, Tape


def taylor(function: Callable[[Any], Any], points: Tensor, indices: Indices, tape: Tape | None = None) -> Tensor:
    """Return derivatives by forward Taylor mode.

    Args:
        function: a module, or whatever takes ``[N, d]`` to ``[N, outputs]``.
        points: ``[N, d]``, in single or double precision.
        indices: which derivatives.
        tape: notes uses of parameters.

    Returns:
        ``[K, N, outputs]``.

    Raises:
        NoRule: a step of the function has no rule.
        NotSmooth: a step lacks a derivative that is asked for.

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> taylor(net, torch.rand(5, 2), Indices.closure(2, [(2, 0), (0, 2)])).shape  # u, u_y, u_x, u_yy, u_xx
    torch.Size([5, 5, 1])
    """
    out = function(Jet.of_points(points, indices, tape))
    if not isinstance(out, Jet):
        raise NoRule("the function returns something that doesn't follow from its input")
    return out.parts


def nested(function: Callable[[Tensor], Tensor], points: Tensor, indices: Indices) -> Tensor:
    """Return the same by nested reverse mode, for any function whose rows do not depend on each other.

    The result can be derived further by parameters.
    """
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        value = function(points)
        outputs = value.unbind(1)
        known: dict[Index, list[Tensor]] = {indices.members[0]: list(outputs)}
        gradients: dict[Index, list[Tensor]] = {}

        def derived(index: Index, axis: int) -> list[Tensor]:
            """Each output's derivative ``index``, derived by one axis more."""
            if index not in gradients:
                gradients[index] = [_gradient(below, points) for below in known[index]]
            return [gradient[:, axis] for gradient in gradients[index]]

        for index in indices.members[1:]:
            axis = next(k for k, n in enumerate(index) if n)
            known[index] = derived(tuple(n - (k == axis) for k, n in enumerate(index)), axis)
        columns = list(known.values())
        for laplacian in indices.laplacians:
            firsts = (indices.members[k] for k in indices.firsts(laplacian))
            seconds = [derived(first, axis) for first, axis in zip(firsts, laplacian.axes, strict=True)]
            columns.append([torch.stack(terms).sum(0) for terms in zip(*seconds, strict=True)])
    return torch.stack([torch.stack(column, 1) for column in columns])


def _gradient(value: Tensor, points: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(points)
    (out,) = torch.autograd.grad(value.sum(), points, create_graph=True, allow_unused=True)
    return torch.zeros_like(points) if out is None else out


class Derivatives:
    """Derivatives of one module, by the quicker way that works for it; which one is found out at the first call.

    Args:
        function: a module or function from ``[N, d]`` to ``[N, outputs]``.

    Warns:
        UserWarning: once, when a step has no rule and autograd does the work.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        >>> points = torch.rand(5, 1, dtype=torch.float64)
        >>> both = Derivatives(net)(points, [(2,)]), nested(net, points, Indices.closure(1, [(2,)]))
        >>> bool(torch.allclose(*both, rtol=0, atol=1e-12))
        True
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.by_rules = True

    def __call__(self, points: Tensor, wanted: Indices | Sequence[Derivative], tape: Tape | None = None) -> Tensor:
        """Return ``[K, N, outputs]`` at points ``[N, d]``; with autograd the tape stays empty."""
        indices = wanted if isinstance(wanted, Indices) else Indices.closure(points.shape[1], wanted)
        if self.by_rules:
            entries = len(tape.entries) if tape is not None else 0
            try:
                return taylor(self.function, points, indices, tape)
            except (NoRule, TypeError, AttributeError) as error:
                self.by_rules = False
                if tape is not None:
                    del tape.entries[entries:]
                warnings.warn(
                    f"derivatives of {type(self.function).__name__} by autograd, which is slower: {error}", stacklevel=2
                )
        return nested(self.function, points, indices)
