"""One of each callback that trains or watches, for benchmarks that run all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_effnn.callbacks import (
    FocusedCompression,
    HardwareEnergyMonitor,
    LowPrecisionSearch,
    SpongeEvaluation,
    SpongeTraining,
)

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
}
"""By name, made for a folder that they write to; all of them go together in one Trainer."""
