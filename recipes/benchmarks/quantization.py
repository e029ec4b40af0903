"""Quantise a small CNN on digits at several widths, with and without training; accuracy of several seeds.

    effnn run benchmarks/quantization --seeds 5

*Post-training*: the dense network is quantised as it is, ranges observed on the training images once. *Observed* and
*learned*: from the dense network it is trained on, quantised. First and last layer have 8 bits. Accuracy is on the
validation images, for choosing among these is part of what is measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from lightning_effnn._files import write_text
from lightning_effnn.data import DigitsDataModule
from lightning_effnn.modules import SmallCNN
from lightning_effnn.quantization import Attachment, QuantizationPlan, quantize_

WIDTHS = ((8, 8), (6, 8), (4, 8), (4, 4), (3, 3), (2, 2))
WAYS = ("post-training", "post-training, per channel", "observed", "learned")
LEARNING_RATE = 3e-3


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a width and way; write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/quantization", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15, help="of the dense training")
    parser.add_argument("--more-epochs", type=int, default=10, help="of the quantised training")
    parser.add_argument("--widths", type=_width, nargs="+", default=WIDTHS, help="such as 4,8 for W4A8")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    found: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        data = DigitsDataModule(seed=seed)
        data.setup()
        torch.manual_seed(seed)
        dense = SmallCNN()
        fit(dense, data, args.epochs, LEARNING_RATE)
        found.setdefault("dense", []).append(accuracy(dense, data))
        for weights, activations in args.widths:
            for way in WAYS:
                net = copy.deepcopy(dense)
                _quantise(net, data, way, weights, activations, args.more_epochs)
                found.setdefault(f"W{weights}A{activations} {way}", []).append(accuracy(net, data))
    Console().print(_table(found))
    if args.out:
        write_text(args.out, json.dumps(found, indent=1) + "\n")
    return 0


def _quantise(net: nn.Module, data: DigitsDataModule, way: str, weights: int, activations: int, epochs: int) -> None:
    plan = QuantizationPlan.uniform(net, weights, activations)
    learned = way == "learned"
    attachment = quantize_(net, plan, "learned" if learned else "observed", per_channel=way.endswith("channel"))
    if way.startswith("post-training"):
        net.eval()
        with attachment.calibrating(), torch.no_grad():
            for images, _ in data.train_dataloader():
                net(images)
    else:
        fit(net, data, epochs, LEARNING_RATE / 3, attachment)


def fit(
    net: nn.Module, data: DigitsDataModule, epochs: int, learning_rate: float, attachment: Attachment | None = None
) -> None:
    """Adam with a cosine schedule; learned scales are trained along, without weight decay."""
    if attachment is not None:  # learned scales start from the first images, before the optimiser moves anything
        with torch.no_grad():
            net.eval()(next(iter(data.train_dataloader()))[0])
    scales = [] if attachment is None else list(attachment.quantizers.parameters())
    optimizer = torch.optim.Adam([*net.parameters(), *scales], learning_rate)
    loader = data.train_dataloader()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        net.train()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(net: nn.Module, data: DigitsDataModule) -> float:
    """Share of the validation images that are classified right."""
    net.eval()
    right = total = 0
    for images, labels in data.val_dataloader():
        right += int((net(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def _width(text: str) -> tuple[int, int]:
    weights, activations = map(int, text.split(","))
    return weights, activations


def _table(found: dict[str, list[float]]) -> Table:
    table = Table(title="SmallCNN on digits: accuracy in percent", title_justify="left")
    for heading in ("network", "mean", "least", "most"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, values in found.items():
        numbers = (statistics.mean(values), min(values), max(values))
        table.add_row(name, *(f"{100 * value:.2f}" for value in numbers))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
