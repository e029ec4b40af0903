"""Time training with HardwareEnergyMonitor against training without, in pairs; check that the weights are the same.

Two figures: whole epochs against each other, and, since machines differ by more than that from one epoch to the next,
the first batch (the traced one, from the epoch's start to the second batch) against the first batch, as a share of
the epoch. Nothing of the callback runs in the others.

EFFNN_DATA=/path/to/data effnn run benchmarks/hardware_overhead          # ResNet-20, CIFAR-10, batch 128, 5 pairs
effnn run benchmarks/hardware_overhead --pairs 2 --batches 20            # shorter
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import HardwareEnergyMonitor
from lightning_effnn.data import CIFAR10DataModule
from lightning_effnn.modules import ImageClassifier, ResNetCIFAR

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a pair and the median overhead; write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/hardware_overhead", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=100, help="batches an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--root", help="folder of the data; by default EFFNN_DATA")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    try:
        data = CIFAR10DataModule(root=args.root, batch_size=args.batch_size, num_workers=0)
        data.prepare_data()
        data.setup("fit")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _epoch(data, 3, monitored=True)  # first calls of kernels and imports are nobody's overhead
    rows = []
    for pair in range(args.pairs):
        epochs = {}
        for monitored in (False, True) if pair % 2 == 0 else (True, False):
            epochs[monitored] = _epoch(data, args.batches, monitored)
        (off, off_weights), (on, on_weights) = epochs[False], epochs[True]
        rows.append(
            {
                "pair": pair,
                "off s": off.epoch,
                "on s": on.epoch,
                "epochs": on.epoch / off.epoch - 1,
                "traced batch": (on.first - off.first) / off.epoch,
                "weights identical": torch.equal(on_weights, off_weights),
            }
        )
        print(f"pair {pair}: {rows[-1]['epochs']:+.2%}, {rows[-1]['traced batch']:+.2%}", flush=True)
    result = {
        "overhead, whole epochs, median": statistics.median(row["epochs"] for row in rows),
        "overhead, traced batch, median": statistics.median(row["traced batch"] for row in rows),
        "batches": args.batches,
        "batch size": args.batch_size,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    Console().print(_table(rows))
    for name in ("overhead, whole epochs, median", "overhead, traced batch, median"):
        print(f"{name}: {result[name]:+.2%}")
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0 if all(row["weights identical"] for row in rows) else 1


class _Stopwatch(L.Callback):
    """Seconds of the epoch and of its first batch, the other callbacks' work included."""

    epoch = first = start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if index == 1:
            self.first = time.perf_counter() - self.start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch = time.perf_counter() - self.start


def _epoch(data: CIFAR10DataModule, batches: int, monitored: bool) -> tuple[_Stopwatch, torch.Tensor]:
    L.seed_everything(0, verbose=False)
    model = ImageClassifier(ResNetCIFAR(depth=20), num_classes=10)
    watch = _Stopwatch()
    callbacks: list[L.Callback] = [watch]
    if monitored:
        callbacks.append(HardwareEnergyMonitor("eyeriss_like", stage="train", table_every_n_epochs=0))
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=batches,
        limit_val_batches=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(model, data)
    return watch, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="HardwareEnergyMonitor, ResNet-20 on CIFAR-10", title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["pair"]), f"{row['off s']:.2f}", f"{row['on s']:.2f}", f"{row['epochs']:+.2%}",
            f"{row['traced batch']:+.2%}", str(row["weights identical"]),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
