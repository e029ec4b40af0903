"""Dense linear algebra: multiply-accumulates by the textbook counts of the algorithm that LAPACK runs.

Counts of floating-point operations are those of Golub and Van Loan, "Matrix Computations" (4th edition, 2013),
halved, for a multiplication and an addition are one multiply-accumulate. Where the number of steps depends on
the values (eigenvalues, singular values), it is the book's estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_effnn.hardware.tracing.handlers_mac import gemm
from lightning_effnn.hardware.tracing.pieces import Call, Piece, handles

_COUNTS: dict[str, Callable[[int, int, int], float]] = {
    # rows m, columns n, right-hand sides k
    "linalg_cholesky_ex": lambda m, n, k: n**3 / 6,
    "cholesky": lambda m, n, k: n**3 / 6,
    "cholesky_inverse": lambda m, n, k: n**3 / 3,
    "_cholesky_solve_helper": lambda m, n, k: n * n * k,
    "linalg_lu_factor_ex": lambda m, n, k: n**3 / 3,
    "linalg_lu": lambda m, n, k: n**3 / 3,
    "_linalg_det": lambda m, n, k: n**3 / 3,
    "_linalg_slogdet": lambda m, n, k: n**3 / 3,
    "linalg_ldl_factor_ex": lambda m, n, k: n**3 / 6,
    "linalg_inv_ex": lambda m, n, k: n**3,
    "_linalg_solve_ex": lambda m, n, k: n**3 / 3 + n * n * k,
    "linalg_lu_solve": lambda m, n, k: n * n * k,
    "linalg_ldl_solve": lambda m, n, k: n * n * k,
    "linalg_solve_triangular": lambda m, n, k: n * n * k / 2,
    "triangular_solve": lambda m, n, k: n * n * k / 2,
    "linalg_qr": lambda m, n, k: 2 * (m * n * n - n**3 / 3),
    "geqrf": lambda m, n, k: m * n * n - n**3 / 3,
    "linalg_householder_product": lambda m, n, k: m * n * n - n**3 / 3,
    "linalg_lstsq": lambda m, n, k: m * n * n - n**3 / 3 + m * n * k,
    "_linalg_eigh": lambda m, n, k: 4.5 * n**3,
    "_linalg_eigvals": lambda m, n, k: 5 * n**3,
    "linalg_eig": lambda m, n, k: 12.5 * n**3,
    "_linalg_svd": lambda m, n, k: 2 * m * m * n + 4 * m * n * n + 4.5 * n**3,
    "linalg_pinv": lambda m, n, k: 2 * m * m * n + 5 * m * n * n + 4.5 * n**3,
    "linalg_matrix_exp": lambda m, n, k: 8 * n**3,
}
"""Multiply-accumulates of one matrix [m, n]; a matrix exponential is about eight products (order 18, scaled)."""


@handles(*_COUNTS)
def decomposition(call: Call) -> list[Piece] | None:
    """A matrix [m, n], or a stack of them, and ``k`` right-hand sides where it solves for them."""
    systems = ("linalg_lu_solve", "linalg_ldl_solve")
    matrix = next((t for t in call.inputs if t.dim() >= 2), None)
    if matrix is None:
        return None
    rows, columns = matrix.shape[-2:]
    others = [t for t in call.inputs if t is not matrix and t.is_floating_point()]
    sides = call.inputs[-1] if call.name in systems else next(iter(others), None)
    number = 1 if sides is None or sides.dim() < 2 else sides.shape[-1]
    if call.name == "triangular_solve":  # the right-hand sides come first
        matrix, number = call.inputs[1], call.inputs[0].shape[-1]
        rows, columns = matrix.shape[-2:]
    macs = max(1, math.ceil(_COUNTS[call.name](max(rows, columns), min(rows, columns), number)))
    groups = math.prod(matrix.shape[:-2])
    axes = {"G": [(matrix, dim) for dim in range(matrix.dim() - 2)]}
    return [gemm(1, macs, 1, groups=groups, weight=matrix, input=matrix, output=call.outputs[0], axes=axes)]
