"""Features that are mostly zero: the same numbers from the others alone.

A bag of words has a per cent of non-zeros. On a CPU, drawing dropout for all the zeros and multiplying by them takes
ten times as long as the rest of a small graph network.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_effnn._remembered import Remembered
from lightning_effnn.formats.tagging import listeners

_SPARSE = 0.05
"""Share of non-zeros up to which the sparse product is the faster one."""


class SparseFeatures:
    """Where the non-zeros of the features are; found once for a tensor that stays the same."""

    def __init__(self) -> None:
        self._found: Remembered[Tensor | None] = Remembered()

    def quantized(self, x: Tensor, quantizer: nn.Module) -> Tensor:
        """Return ``quantizer(x)``, as sparse CSR where that is faster.

        Zero is a level of every format of features, so rounding the others alone gives the same numbers. A trace is
        shown the dense product, which is what an accelerator computes.

        Args:
            x: [N, F].
            quantizer: of the features.
        """
        rows = self._rows(x)
        if rows is None:
            dense: Tensor = quantizer(x)
            return dense
        return _with_values(rows, quantizer(rows.values()))

    def _rows(self, x: Tensor) -> Tensor | None:
        if x.device.type != "cpu" or x.requires_grad or listeners() or x.dtype != torch.float32:
            return None
        return self._found.of(x, lambda: _to_rows(x) if int(torch.count_nonzero(x)) <= _SPARSE * x.numel() else None)


def sparse_rows(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a sparse CSR matrix of entries that are known to be in order."""
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout of [N, C], dense or sparse CSR."""
    if not training or not share or x.layout is torch.strided:
        return F.dropout(x, share, training)
    return _with_values(x, F.dropout(x.values(), share, training))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` [N, K] of dense or sparse CSR [N, C] and [K, C]."""
    if x.layout is torch.strided:
        return F.linear(x, weight)
    return x @ weight.T


def _to_rows(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return x.to_sparse_csr()


def _with_values(rows: Tensor, values: Tensor) -> Tensor:
    return sparse_rows(rows.crow_indices(), rows.col_indices(), values, (rows.shape[0], rows.shape[1]))
