"""Data for recipes, tests and benchmarks: one ``LightningDataModule`` a file, no downloads."""

from lightning_effnn.data.cifar10 import CIFAR10DataModule
from lightning_effnn.data.digits import DigitsDataModule

__all__ = ["CIFAR10DataModule", "DigitsDataModule"]
