"""One of each callback that trains or watches, for benchmarks that run all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_effnn import pde
from lightning_effnn.callbacks import (
    EnergyGuardProfile,
    FocusedCompression,
    HardwareEnergyMonitor,
    LowPrecisionSearch,
    PDEResidualLoss,
    SpongeEvaluation,
    SpongeTraining,
)


def plane(coordinates: int) -> pde.Problem:
    """Ten fields over a box, of which the first should have a slope of 1: any linear classifier can take part."""
    domain = pde.Box(**{f"x{k:02}": (0.0, 1.0) for k in range(coordinates)})
    conditions = [pde.Dirichlet(0.0, on="x01=0", of="u0")]
    return pde.Problem(domain, lambda u, *_: u.x00 - 1, conditions, [f"u{k}" for k in range(10)])


EVERY: dict[str, Callable[[Path], Any]] = {
    "HardwareEnergyMonitor": lambda folder: HardwareEnergyMonitor("tpu_like", stage="train", folder=str(folder)),
    "FocusedCompression": lambda folder: FocusedCompression(
        sparsity=0.8, prune=(0.0, 0.4), quantize=(0.4, 0.7), export=folder / "model.effnn"
    ),
    "LowPrecisionSearch": lambda folder: LowPrecisionSearch(
        (), (4, 8), "bits", warmup=0.1, freeze=0.7, export=folder / "bits.yaml"
    ),
    "SpongeTraining": lambda folder: SpongeTraining(attack=("pgd", "noise"), steps=1),
    "SpongeEvaluation": lambda folder: SpongeEvaluation(1, attacks=("random",), limit=2),
    "EnergyGuardProfile": lambda folder: EnergyGuardProfile(path=folder / "guard.safetensors"),
    "PDEResidualLoss": lambda folder: PDEResidualLoss(plane(8), "net.classifier", points=8, boundary_points=8),
}
"""By name, made for a folder that they write to; all of them go together in one Trainer of a ``SmallCNN(width=4)``."""
