"""Callbacks to drop into a Lightning Trainer, of ``lightning`` or ``pytorch_lightning``."""

from lightning_effnn.callbacks.energy_guard_profile import EnergyGuardProfile
from lightning_effnn.callbacks.focused_compression import FocusedCompression
from lightning_effnn.callbacks.hardware_energy import HardwareEnergyMonitor
from lightning_effnn.callbacks.low_precision_search import LowPrecisionSearch
from lightning_effnn.callbacks.pde_residual_loss import PDEResidualLoss
from lightning_effnn.callbacks.sponge_evaluation import SpongeEvaluation
from lightning_effnn.callbacks.sponge_training import SpongeTraining

__all__ = [
    "EnergyGuardProfile",
    "FocusedCompression",
    "HardwareEnergyMonitor",
    "LowPrecisionSearch",
    "PDEResidualLoss",
    "SpongeEvaluation",
    "SpongeTraining",
]
