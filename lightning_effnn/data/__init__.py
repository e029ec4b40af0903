"""Data for recipes, tests and benchmarks: one ``LightningDataModule`` a file, no downloads."""

from lightning_effnn.data.cifar10 import CIFAR10DataModule
from lightning_effnn.data.digits import DigitsDataModule
from lightning_effnn.data.graphs import GraphDataModule, SyntheticGraphDataModule
from lightning_effnn.data.mnist import MNISTDataModule
from lightning_effnn.data.numbers import NumbersDataModule
from lightning_effnn.data.sst2 import SST2DataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "GraphDataModule",
    "MNISTDataModule",
    "NumbersDataModule",
    "SST2DataModule",
    "SyntheticGraphDataModule",
]
