"""Dense linear algebra: multiply-accumulates by the textbook counts of the algorithm that LAPACK runs.

Counts of floating-point operations are those of Golub and Van Loan, "Matrix Computations" (4th edition, 2013),
halved, for a multiplication and an addition are one multiply-accumulate. Where the number of steps depends on
the values (eigenvalues, singular values), it is the book's estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from lightning_effnn.hardware.tracing.handlers_mac import gemm
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Product, handles

_COUNTS: dict[str, Callable[[int, int], float]] = {
    # rows m, columns n
    "linalg_cholesky_ex": lambda m, n: n**3 / 6,
    "cholesky": lambda m, n: n**3 / 6,
    "cholesky_inverse": lambda m, n: n**3 / 3,
    "linalg_lu_factor_ex": lambda m, n: n**3 / 3,
    "linalg_lu": lambda m, n: n**3 / 3,
    "_linalg_det": lambda m, n: n**3 / 3,
    "_linalg_slogdet": lambda m, n: n**3 / 3,
    "linalg_ldl_factor_ex": lambda m, n: n**3 / 6,
    "linalg_inv_ex": lambda m, n: n**3,
    "_linalg_solve_ex": lambda m, n: n**3 / 3,
    "linalg_qr": lambda m, n: 2 * (m * n * n - n**3 / 3),
    "geqrf": lambda m, n: m * n * n - n**3 / 3,
    "linalg_householder_product": lambda m, n: m * n * n - n**3 / 3,
    "linalg_lstsq": lambda m, n: m * n * n - n**3 / 3,
    "_linalg_eigh": lambda m, n: 4.5 * n**3,
    "_linalg_eigvals": lambda m, n: 5 * n**3,
    "linalg_eig": lambda m, n: 12.5 * n**3,
    "_linalg_svd": lambda m, n: 2 * m * m * n + 4 * m * n * n + 4.5 * n**3,
    "linalg_pinv": lambda m, n: 2 * m * m * n + 5 * m * n * n + 4.5 * n**3,
    "linalg_matrix_exp": lambda m, n: 8 * n**3,
}
"""Multiply-accumulates of one matrix [m, n]; a matrix exponential is about eight products (order 18, scaled)."""

_SIDES: dict[str, tuple[str, str, Callable[[int, int], float]]] = {
    "_cholesky_solve_helper": ("A", "self", lambda m, n: n * n),
    "cholesky_solve": ("input2", "self", lambda m, n: n * n),
    "_linalg_solve_ex": ("A", "B", lambda m, n: n * n),
    "linalg_lu_solve": ("LU", "B", lambda m, n: n * n),
    "linalg_ldl_solve": ("LD", "B", lambda m, n: n * n),
    "linalg_solve_triangular": ("self", "B", lambda m, n: n * n / 2),
    "triangular_solve": ("A", "self", lambda m, n: n * n / 2),
    "linalg_lstsq": ("self", "b", lambda m, n: m * n),
}
"""What solves a system: its matrix, its right-hand sides, and the multiply-accumulates of one of them."""


@handles(*_COUNTS.keys() - _SIDES.keys())
def decomposition(call: Call) -> list[Piece] | None:
    """A matrix [m, n], or a stack of them."""
    matrix = next((t for t in call.inputs if t.dim() >= 2), None)
    return None if matrix is None else [_of_matrix(call, matrix)]


@handles(*_SIDES)
def solution(call: Call) -> list[Piece] | None:
    """A decomposition, and a product for each right-hand side; a constant matrix was decomposed before."""
    name, other, count = _SIDES[call.name]
    matrix, sides = call.get(name), call.get(other)
    if matrix.dim() < 2:
        return None
    vectors = sides.dim() == 1 or (sides.dim() == matrix.dim() - 1 and sides.shape == matrix.shape[:-1])
    along = sides.dim() - (2 if call.get("left") is False else 1)
    number = 1 if vectors else sides.shape[along]
    stacked = sides.shape[: -1 if vectors else -2]
    rows, columns = matrix.shape[-2:]
    axes = {
        "B": [] if vectors else [(sides, along)],
        "G": [(t, dim) for t, dims in ((matrix, matrix.dim() - 2), (sides, len(stacked))) for dim in range(dims)],
    }
    groups = math.prod(call.outputs[0].shape[: -1 if vectors else -2])
    inner = max(1, math.ceil(count(max(rows, columns), min(rows, columns))))
    solved = gemm(number, inner, 1, groups=groups, weight=matrix, input=sides, output=call.outputs[0], axes=axes)
    return [_of_matrix(call, matrix), solved] if call.name in _COUNTS and call.varies(matrix) else [solved]


def _of_matrix(call: Call, matrix: Tensor) -> Product:
    rows, columns = matrix.shape[-2:]
    macs = max(1, math.ceil(_COUNTS[call.name](max(rows, columns), min(rows, columns))))
    axes = {"G": [(matrix, dim) for dim in range(matrix.dim() - 2)]}
    groups = math.prod(matrix.shape[:-2])
    return gemm(1, macs, 1, groups=groups, weight=matrix, input=matrix, output=call.outputs[0], axes=axes)
