"""Solutions to compare with, where no formula is known."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

NU = 0.01 / math.pi
"""Viscosity of Burgers' equation in most of what is written on it."""


def burgers(x: Tensor, t: Tensor, nu: float = NU, nodes: int = 100) -> Tensor:
    """Return the solution that starts as ``-sin(pi x)``, by the transformation of Cole and Hopf.

    The integral over a Gaussian is taken by Gauss and Hermite's quadrature.

    Source: Basdevant et al. (1986), "Spectral and finite difference solutions of the Burgers equation".
    """
    knots, weights = (torch.as_tensor(part) for part in np.polynomial.hermite.hermgauss(nodes))
    x, t = x.detach().double().cpu(), t.detach().double().cpu()
    shifted = x[:, None] - 2 * (nu * t.clamp_min(1e-12)).sqrt()[:, None] * knots
    exponent = -torch.cos(math.pi * shifted) / (2 * math.pi * nu)
    mass = torch.exp(exponent - exponent.amax(1, keepdim=True)) * weights
    return -(torch.sin(math.pi * shifted) * mass).sum(1) / mass.sum(1)


@functools.cache
def _allen_cahn_table(diffusion: float, cells: int = 1024, steps: int = 10_000, every: int = 50) -> Any:
    """Strang splitting: diffusion in a sine series, the reaction in closed form."""
    from scipy.fft import dst, idst
    from scipy.interpolate import RegularGridInterpolator

    x = np.linspace(-1, 1, cells + 1)
    decay = np.exp(-diffusion * (np.arange(1, cells) * math.pi / 2) ** 2 / steps / 2)
    above = (x**2 * np.cos(math.pi * x) + 1)[1:-1]  # u + 1, which is zero at both ends
    shrink = math.exp(-10 / steps)
    frames = [above]
    for step in range(1, steps + 1):
        u = idst(decay * dst(above, type=1), type=1) - 1
        u = u / np.sqrt(u * u + (1 - u * u) * shrink)
        above = idst(decay * dst(u + 1, type=1), type=1)
        if step % every == 0:
            frames.append(above)
    u = np.pad(np.stack(frames), ((0, 0), (1, 1))) - 1
    return RegularGridInterpolator((np.linspace(0, 1, len(u)), x), u, method="cubic")


def allen_cahn(x: Tensor, t: Tensor, diffusion: float = 0.001) -> Tensor:
    """Return the solution of ``u_t = d u_xx + 5 (u - u^3)`` that starts as ``x^2 cos(pi x)`` and is -1 at both ends."""
    where = np.stack([t.detach().double().cpu().numpy(), x.detach().double().cpu().numpy()], 1)
    return torch.as_tensor(_allen_cahn_table(diffusion)(where))


@functools.cache
def _lshape_table(half: int = 200) -> Any:
    """Five-point differences on two meshes, extrapolated; the error goes with the power 4/3 of the mesh's width."""
    from scipy.interpolate import RegularGridInterpolator
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import spsolve

    def differences(cells: int) -> Any:
        side = 2 * cells + 1
        inside = np.zeros((side, side), bool)
        inside[1:-1, 1:-1] = True
        inside[cells:, cells:] = False
        number = np.full((side, side), -1)
        number[inside] = np.arange(inside.sum())
        row, column = np.nonzero(inside)
        own = number[row, column]
        rows, columns, values = [own], [own], [np.full(len(own), 4.0)]
        for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            other = number[row + down, column + right]
            kept = other >= 0
            rows.append(own[kept])
            columns.append(other[kept])
            values.append(np.full(int(kept.sum()), -1.0))
        matrix = csc_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
        u = np.zeros((side, side))
        u[inside] = spsolve(matrix, np.full(len(own), 1 / cells**2))
        return u

    coarse, fine = differences(half // 2), differences(half)[::2, ::2]
    u = fine + (fine - coarse) / (2 ** (4 / 3) - 1)
    line = np.linspace(-1, 1, len(u))
    return RegularGridInterpolator((line, line), u)


def lshape(x: Tensor, y: Tensor) -> Tensor:
    """Return the solution of ``-laplacian(u) = 1``, zero around the square [-1, 1]^2 less its upper right quarter."""
    where = np.stack([x.detach().double().cpu().numpy(), y.detach().double().cpu().numpy()], 1)
    return torch.as_tensor(_lshape_table()(where))
