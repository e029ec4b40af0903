"""Prune and focus a pretrained ResNet-20 without training, and estimate its batch-norm statistics anew.

    EFFNN_DATA=/path/to/data effnn run benchmarks/post_training_resnet20

Each row is one share of zeros and one width. Accuracy is on the CIFAR-10 test images: right after quantisation, and of
the network loaded back from its file, whose running means and variances are those of training images. To use it for a
network of your own, copy it (`effnn cp benchmarks/post_training_resnet20 mine.py`) and change the two functions
below the parser.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from lightning_effnn import hardware
from lightning_effnn._files import write_text
from lightning_effnn.compression import focus_model_, load_compressed, prune_model_, save_compressed
from lightning_effnn.data import CIFAR10DataModule
from lightning_effnn.modules import ResNetCIFAR

Loader = DataLoader[Any]
Row = dict[str, Any]
CALIBRATION = 4000
"""Training images for the statistics: they settle within the first few thousand."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a setting; write them as JSON where ``--out`` says, and the last file where ``--export`` says."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/post_training_resnet20", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--images", type=int, help="only so many training and test images, for a quick check")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--export", type=Path, help="keep the last compressed network here (.effnn)")
    args = parser.parse_args(argv)
    try:
        net = pretrained()
        training, test = loaders(args.images)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [_uncompressed(net, training, test)]
    with tempfile.TemporaryDirectory() as folder:
        path = args.export or Path(folder) / "model.effnn"
        for sparsity in args.sparsity:
            for bits in args.bits:
                rows.append(_compressed(net, training, test, sparsity, bits, path))
    Console().print(_table(rows))
    if args.out:
        write_text(args.out, json.dumps(rows, indent=1) + "\n")
    return 0


def pretrained() -> torch.nn.Module:
    """Return the network to compress, with its weights."""
    return ResNetCIFAR(depth=20, weights="cifar10_resnet20.safetensors").eval()


def loaders(images: int | None) -> tuple[Loader, Loader]:
    """Return batches of training inputs, for the statistics, and of test inputs with their labels."""
    enough = CALIBRATION if images is None else min(CALIBRATION, images)
    training = CIFAR10DataModule(limit=enough, val_size=enough // 10)
    training.setup("fit")
    test = CIFAR10DataModule(batch_size=500, limit=images)
    test.setup("test")
    return training.train_dataloader(), test.test_dataloader()


def _uncompressed(net: torch.nn.Module, training: Loader, test: Loader) -> Row:
    again = copy.deepcopy(net)
    _estimate_statistics(again, training)
    return {
        "sparsity": 0.0,
        "bits": 32,
        "quantised": _accuracy(net, test),
        "with new statistics": _accuracy(again, test),
        "bytes": None,
        "ratio": 1.0,
        "energy_uJ": _energy(net, test),
    }


def _compressed(net: torch.nn.Module, training: Loader, test: Loader, sparsity: float, bits: int, path: Path) -> Row:
    small = copy.deepcopy(net)
    if sparsity:
        prune_model_(small, sparsity)
    focus_model_(small, bits=bits)
    before = _accuracy(small, test)
    _estimate_statistics(small, training)
    report = save_compressed(small, path, other="fp16")
    loaded = load_compressed(path, copy.deepcopy(net))
    return {
        "sparsity": sparsity,
        "bits": bits,
        "quantised": before,
        "with new statistics": _accuracy(loaded, test),
        "bytes": report.bytes,
        "ratio": report.ratio,
        "energy_uJ": _energy(small, test),
    }


def _estimate_statistics(net: torch.nn.Module, training: Loader) -> None:
    """Replace the running means and variances by averages over the training batches; weights stay."""
    net.train()
    with torch.no_grad():
        update_bn(training, net)
    net.eval()


@torch.inference_mode()
def _accuracy(net: torch.nn.Module, test: Loader) -> float:
    right = total = 0
    for images, labels in test:
        right += int((net(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def _energy(net: torch.nn.Module, test: Loader) -> float:
    images, _ = next(iter(test))
    return hardware.estimate(hardware.trace(net, images[:32]), "eyeriss_like").energy_uJ


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="ResNet-20, CIFAR-10, no training", title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['sparsity']:.0%}", str(row["bits"]), f"{row['quantised']:.2%}", f"{row['with new statistics']:.2%}",
            "-" if row["bytes"] is None else f"{row['bytes']:,}", f"{row['ratio']:.1f}x", f"{row['energy_uJ']:,.1f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
