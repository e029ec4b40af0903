"""CIFAR-10 read from two files of JPEG bytes, decoded once into memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_effnn._lookup import find_file
from lightning_effnn.data._augment import cropped
from lightning_effnn.data._sampling import SeededShuffle, seeded

_SIDE = 32
_MARGIN = 4  # random crops out of the image padded by this much on each side (He et al., 2016)


class CIFAR10DataModule(L.LightningDataModule):
    """Images ``[B, 3, 32, 32]``, normalised by the channel means and deviations of ImageNet.

    The files are ``cifar10_train_jpeg.npz`` and ``cifar10_test_jpeg.npz``: arrays ``jpeg`` (bytes end
    to end), ``offsets`` and ``labels``. Training images are shifted and mirrored at random on the
    device; the shifts depend on the seed, the epoch and the batch only, so a resumed fit repeats them.

    Args:
        root: folder of the two files; ``None`` takes the environment variable ``EFFNN_DATA``.
        batch_size: images a batch.
        val_size: training images held out for validation, evenly from each class.
        augment: shift and mirror the training images.
        limit: use only the first so many images of each file, for quick checks; ``None`` for all.
        seed: chooses the validation images, the order and the augmentation.
        num_workers: worker processes of each loader.
        normalised: whether the images are; else their values lie in [0, 1], for a network that normalises by itself
            (``modules.Normalized(net, CIFAR10DataModule.mean, CIFAR10DataModule.std)``).
    """

    num_classes = 10
    input_shape = (3, _SIDE, _SIDE)
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 128,
        val_size: int = 5000,
        augment: bool = True,
        limit: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: use a whole number of at least 1")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}: use a whole number of at least 1, or None for all")
        self.root = root
        self.batch_size = batch_size
        self.val_size = val_size
        self.augment = augment
        self.limit = limit
        self.seed = seed
        self.num_workers = num_workers
        self.normalised = normalised
        self._splits: dict[str, _Images] = {}

    def prepare_data(self) -> None:
        """Fail before anything else is set up where a file is missing."""
        for part in ("train", "test"):
            find_file(f"cifar10_{part}_jpeg.npz", self.root)

    def setup(self, stage: str | None = None) -> None:
        """Decode what the stage needs, once: fit and validate the training file, test the other."""
        if stage in ("fit", "validate", None) and "train" not in self._splits:
            images = _load(find_file("cifar10_train_jpeg.npz", self.root), self.limit, self.normalised)
            held_out = _every_class_evenly(images.labels, self.val_size, self.seed)
            self._splits["train"] = images.select(~held_out)
            self._splits["val"] = images.select(held_out)
        if stage in ("test", "predict", None) and "test" not in self._splits:
            self._splits["test"] = _load(find_file("cifar10_test_jpeg.npz", self.root), self.limit, self.normalised)

    def train_dataloader(self) -> DataLoader[Any]:
        """Whole batches in an order that depends on the seed and the epoch only."""
        data = self._splits["train"]
        shuffle = SeededShuffle(len(data), self.seed)
        return self._loader(data, sampler=shuffle, drop_last=len(data) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation image once, in order."""
        return self._loader(self._splits["val"])

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test image once, in order."""
        return self._loader(self._splits["test"])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Shift and mirror training images, on the device they are on."""
        trainer = self.trainer
        if not self.augment or trainer is None or not trainer.training:
            return batch
        if isinstance(batch, Tensor):  # the model's example, which Lightning's summary sends the same way
            return batch
        number = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        generator = seeded(self.seed, trainer.current_epoch, number, trainer.global_rank)
        images, labels = batch
        return shift_and_mirror(images, generator), labels

    def _loader(self, data: _Images, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_as_fetched,
            **options,
        )


_MEAN, _STD = (torch.tensor(values).view(3, 1, 1) for values in (CIFAR10DataModule.mean, CIFAR10DataModule.std))


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """Images as bytes, turned into numbers a batch at a time."""

    def __init__(self, pixels: Tensor, labels: Tensor, normalised: bool) -> None:
        self.pixels = pixels
        self.labels = labels
        self.normalised = normalised

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._values(index), self.labels[index]

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        return self._values(index), self.labels[index]

    def select(self, mask: Tensor) -> _Images:
        return _Images(self.pixels[mask], self.labels[mask], self.normalised)

    def _values(self, index: int | list[int]) -> Tensor:
        pixels = self.pixels[index]
        return normalise(pixels) if self.normalised else pixels.float() / 255


def normalise(pixels: Tensor) -> Tensor:
    """Turn bytes ``[..., 3, H, W]`` into numbers of about zero mean and unit deviation."""
    return (pixels.float() / 255 - _MEAN) / _STD


def shift_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to four pixels, zeros coming in, and mirror half of them.

    >>> images = torch.ones(8, 3, 32, 32)
    >>> shift_and_mirror(images, torch.Generator().manual_seed(0)).shape
    torch.Size([8, 3, 32, 32])
    """
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * _MARGIN + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    return cropped(images, rows, columns, _MARGIN)


def _as_fetched(batch: Any) -> Any:
    return batch


def _load(path: Path, limit: int | None, normalised: bool) -> _Images:
    """Decode the JPEG bytes of one file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("CIFAR10DataModule needs pillow: pip install 'lightning_effnn[recipes]'") from error
    with np.load(path) as file:
        jpeg, offsets, labels = file["jpeg"], file["offsets"], file["labels"][:limit]
    pixels = np.empty((len(labels), _SIDE, _SIDE, 3), np.uint8)
    for i in range(len(labels)):
        with Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())) as image:
            pixels[i] = np.asarray(image.convert("RGB"))
    return _Images(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long(), normalised
    )


def _every_class_evenly(labels: Tensor, size: int, seed: int) -> Tensor:
    """Return a mask of ``size`` images, drawn by the seed, as many of each class as can be."""
    if not 0 < size < len(labels):
        raise ValueError(f"val_size is {size}: use a number between 1 and {len(labels) - 1}")
    order = torch.randperm(len(labels), generator=seeded(seed))
    rank = torch.empty(len(labels))
    for label in range(int(labels.max()) + 1):
        of_class = order[labels[order] == label]
        rank[of_class] = torch.arange(len(of_class)) / len(of_class)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[rank.argsort(stable=True)[:size]] = True
    return mask
