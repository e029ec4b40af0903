"""How each residual changes with each parameter, from one backward pass.

Rows of a batch do not depend on each other, so the gradient of a *sum* of residuals by what a layer puts out holds, row
by row, the gradients of the single residuals; multiplied by what went into that layer they are the rows of the
Jacobian. No vectorised single gradients, no second run of the network.

Source: Goodfellow (2015), "Efficient Per-Example Gradient Computations", arXiv 1510.01799, here with derivatives
carried along.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn.pde.jets import Entry, Tape


class NotCovered(ValueError):
    """Parameters act in ways that were not noted."""


def rows(residual: Tensor, tape: Tape, parameters: Sequence[Tensor], out: Tensor) -> None:
    """Add the Jacobian of residuals to ``out``.

    Args:
        residual: ``[N]``, each number of one row of the batch.
        tape: filled on the way to it.
        parameters: their tensors, in the order of the columns.
        out: ``[N, P]``, zeros.

    Raises:
        NotCovered: nothing was noted.
    """
    entries = tape.entries
    if not entries:
        raise NotCovered("the field runs without rules, so there are no per-row gradients")
    gradients = torch.autograd.grad(residual.sum(), [e.output for e in entries], retain_graph=True, allow_unused=True)
    start, columns = 0, {}
    for parameter in parameters:
        columns[id(parameter)] = out[:, start : start + parameter.numel()]
        start += parameter.numel()
    for entry, gradient in zip(entries, gradients, strict=True):
        if gradient is not None:
            _add(entry, gradient, columns)


def _add(entry: Entry, gradient: Tensor, columns: dict[int, Tensor]) -> None:
    if entry.kind == "own":
        into = columns.get(id(entry.parameters[0]))
        if into is not None:
            into += gradient.reshape(len(gradient), -1)
        return
    assert entry.inputs is not None
    if entry.kind == "linear":
        weight, bias = entry.parameters
        assert weight is not None
        into = columns.get(id(weight))
        if into is not None:
            into += torch.bmm(gradient.permute(1, 2, 0), entry.inputs.transpose(0, 1)).flatten(1)
        into = columns.get(id(bias))
        if into is not None:
            into += gradient[0]
        return
    (table,) = entry.parameters
    into = columns.get(id(table))
    if into is not None:
        assert entry.rows is not None
        assert table is not None
        features = table.shape[1]
        values = torch.einsum("knj,knf->njf", entry.inputs, gradient)
        where = entry.rows[..., None] * features + torch.arange(features, device=values.device)
        into.scatter_add_(1, where.flatten(1), values.flatten(1))


def check(jacobian: Tensor, residual: Tensor, parameters: Sequence[Tensor]) -> None:
    """Compare with automatic differentiation, in one product.

    Args:
        jacobian: ``[N, P]``.
        residual: ``[N]``, with its graph.
        parameters: in the order of the columns.

    Raises:
        NotCovered: they differ, as they do when a parameter is used in a way that the tape doesn't see.
    """
    gradients = torch.autograd.grad(
        0.5 * residual.square().sum(), list(parameters), retain_graph=True, allow_unused=True
    )
    expected = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                          for p, g in zip(parameters, gradients, strict=True)])  # fmt: skip
    ours = jacobian.T @ residual.detach()
    if not torch.allclose(ours, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()) + 1e-300):
        raise NotCovered("some parameters act in ways that per-row gradients don't see")
