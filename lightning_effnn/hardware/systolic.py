"""Cycles of a systolic array that never waits for memory, as SCALE-Sim counts them.

A product of ``Sr x T`` by ``T x Sc`` (which extent is which depends on what stays in the array) is cut into folds
of ``rows x cols``. Each fold streams ``T`` wavefronts through the array, which fill and drain along its rows
and columns (Samajdar et al., "SCALE-Sim", arXiv 1811.02883, section III).
"""

from __future__ import annotations

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.operation import Operation


def compute_cycles(operation: Operation, accelerator: Accelerator) -> int:
    """Cycles of one operation on a systolic array, groups one after another.

    The cycle in which the last result appears is counted from zero, as in the simulator's reports.

    >>> conv1 = Operation(name="lenet5.conv1", op="convolution", kind="conv", K=20, OY=24, OX=24, FY=5, FX=5)
    >>> compute_cycles(conv1, Accelerator.systolic(16, 16, dataflow="ws"))
    2487
    """
    rows, cols = accelerator.array.values()
    pixels = operation.B * operation.OY * operation.OX
    reduction = operation.C * operation.FY * operation.FX
    # (extent along the rows, extent along the columns, wavefronts, cycles to load what stays)
    along_rows, along_cols, wavefronts, preload = {
        "ws": (reduction, operation.K, pixels, rows),
        "is": (reduction, pixels, operation.K, rows),
        "os": (pixels, operation.K, reduction, 0),
    }[accelerator.dataflow]
    folds = -(-along_rows // rows) * -(-along_cols // cols)
    return folds * (preload + wavefronts + rows + cols - 2) * operation.G - 1
