"""The 1,797 handwritten digits that come with scikit-learn: no download, trains in seconds."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn.data._sampling import SeededShuffle

_WHITE = 16.0  # scikit-learn's digits count dark pixels in 4x4 blocks: 0 to 16


class DigitsDataModule(L.LightningDataModule):
    """Images ``[B, 1, 8, 8]`` in [0, 1] with labels 0 to 9, split by class and by seed.

    Args:
        batch_size: images a batch.
        val_fraction: share of the images held out for validation.
        test_fraction: share of the images held out for the test.
        seed: chooses the split and the order of the training images.
        num_workers: worker processes of each loader; the images are in memory, so 0 is fast.

    >>> data = DigitsDataModule(batch_size=32)
    >>> data.setup()
    >>> images, labels = next(iter(data.train_dataloader()))
    >>> images.shape, labels.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    num_classes = 10
    input_shape = (1, 8, 8)

    def __init__(
        self,
        batch_size: int = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: use a whole number of at least 1")
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction is {val_fraction} and test_fraction is {test_fraction}: "
                "use two positive shares that leave some images for training"
            )
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.num_workers = num_workers
        self._splits: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Split the images once, whatever the stage: a later stage meets the same split."""
        if self._splits:
            return
        images, labels = _load_digits()
        held_out = self.val_fraction + self.test_fraction
        train, rest = _split(torch.arange(len(labels)), labels, held_out, self.seed)
        val, test = _split(rest, labels, self.test_fraction / held_out, self.seed)
        for name, index in (("train", train), ("val", val), ("test", test)):
            self._splits[name] = TensorDataset(images[index], labels[index])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Whole batches in an order that depends on the seed and the epoch only."""
        data = self._splits["train"]
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=SeededShuffle(len(data), self.seed),
            num_workers=self.num_workers,
            drop_last=len(data) >= self.batch_size,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Every validation image once, in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Every test image once, in order."""
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self._splits[split], batch_size=self.batch_size, num_workers=self.num_workers)


def _load_digits() -> tuple[Tensor, Tensor]:
    """All images ``[1797, 1, 8, 8]`` in [0, 1] and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("DigitsDataModule needs scikit-learn: pip install 'lightning_effnn[recipes]'") from error
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / _WHITE
    return images, torch.from_numpy(digits.target).long()


def _split(index: Tensor, labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``index`` in two, the second part a ``fraction`` of each class."""
    from sklearn.model_selection import train_test_split

    kept, taken = train_test_split(index.numpy(), test_size=fraction, random_state=seed, stratify=labels[index].numpy())
    return torch.from_numpy(kept), torch.from_numpy(taken)
