"""MNIST from one npz file, in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn._lookup import find_file
from lightning_effnn.data._augment import cropped
from lightning_effnn.data._sampling import SeededShuffle, seeded

_FILE = "mnist.npz"


class MNISTDataModule(L.LightningDataModule):
    """Images ``[B, 1, 28, 28]`` in [-1, 1] with labels 0 to 9.

    The file ``mnist.npz`` holds ``x_train`` [60000, 28, 28] uint8, ``y_train``, ``x_test`` and ``y_test``.

    Args:
        root: folder of the file; by default the environment variable ``EFFNN_DATA``.
        batch_size: images a batch.
        val_size: training images held out for validation, the last ones; 0 validates on the test images.
        seed: chooses the order of the training images, and their shifts.
        shift: most pixels by which each training image is moved at random, along either axis; 0 leaves them. The shifts
            depend on the seed, the epoch and the batch only, so a resumed fit repeats them.

    Raises:
        ValueError: a batch size below 1, a negative shift, or a validation set that leaves nothing to train on.
        FileNotFoundError: at ``setup``, where there is no file; the message names both ways to say where it is.
    """

    num_classes = 10
    input_shape = (1, 28, 28)

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 128,
        val_size: int = 5000,
        seed: int = 0,
        shift: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: use a whole number of at least 1")
        if not 0 <= val_size < 60000:
            raise ValueError(f"val_size is {val_size}: use 0 to 59999 of the 60,000 training images")
        if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0:
            raise ValueError(f"shift is {shift!r}: use a whole number of pixels, 0 or more")
        self.shift = shift
        self.root = root
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self._splits: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the images once, whatever the stage."""
        if self._splits:
            return
        with np.load(find_file(_FILE, self.root), allow_pickle=False) as file:
            train = _scaled(file["x_train"]), torch.from_numpy(file["y_train"]).long()
            test = _scaled(file["x_test"]), torch.from_numpy(file["y_test"]).long()
        kept = len(train[1]) - self.val_size
        self._splits["train"] = TensorDataset(*(part[:kept] for part in train))
        self._splits["val"] = TensorDataset(*(part[kept:] for part in train) if self.val_size else test)
        self._splits["test"] = TensorDataset(*test)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Whole batches in an order that depends on the seed and the epoch only."""
        data = self._splits["train"]
        sampler = SeededShuffle(len(data), self.seed)
        return DataLoader(data, batch_size=self.batch_size, sampler=sampler, drop_last=len(data) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Every validation image once, in order."""
        return DataLoader(self._splits["val"], batch_size=1000)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Every test image once, in order."""
        return DataLoader(self._splits["test"], batch_size=1000)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Shift training images, on the device they are on."""
        trainer = self.trainer
        if not self.shift or trainer is None or not trainer.training or isinstance(batch, Tensor):
            return batch
        number = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        generator = seeded(self.seed, trainer.current_epoch, number, trainer.global_rank)
        images, labels = batch
        return shifted(images, self.shift, generator), labels


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``most`` pixels along both axes; background comes in.

    >>> shifted(torch.ones(4, 1, 28, 28), 2, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 1, 28, 28])
    """
    top, left = torch.randint(0, 2 * most + 1, (2, len(images), 1), generator=generator)
    rows, columns = top + torch.arange(images.shape[2]), left + torch.arange(images.shape[3])
    return cropped(images, rows, columns, most, fill=-1.0)


def _scaled(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).float().unsqueeze(1) / 127.5 - 1.0
