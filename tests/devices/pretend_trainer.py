"""A Trainer that puts models and batches on the pretended device."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy


class PretendStrategy(SingleDeviceStrategy):
    """One device that is as it is."""

    def setup_environment(self) -> None:
        """Nothing is to be done; the CPU's accelerator would refuse another device."""


def trainer(device: torch.device, **options: Any) -> L.Trainer:
    """Return a quiet Trainer on ``device``."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
             "enable_model_summary": False}  # fmt: skip
    return L.Trainer(**quiet | options, accelerator="cpu", strategy=PretendStrategy(device=device))
