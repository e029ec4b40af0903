"""Focus and encode the LeNet-5 that the paper's authors pruned, without retraining: bytes on disk and accuracy.

    EFFNN_DATA=/path/to/data effnn run benchmarks/post_training

Each row: focused where the separation test fires, or plain shift, at equal bits; biases in 8 bits; accuracy on the
MNIST test set of the network loaded back from its file.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_text
from lightning_effnn._lookup import find_file
from lightning_effnn.compression import focus_model_, load_compressed, save_compressed
from lightning_effnn.compression.finish import Other
from lightning_effnn.data import MNISTDataModule
from lightning_effnn.modules import LeNet5

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a width and kind of level; write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/post_training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--other", choices=("fp32", "fp16", "int8"), default="int8", help="biases")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    try:
        net, data = _pruned(), MNISTDataModule(val_size=0)
        data.setup()
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    base = _accuracy(net, data)
    rows = []
    for bits in args.bits:
        for kind, separation in (("focused", 2.0), ("plain shift", math.inf)):
            rows.append({"bits": bits, "levels": kind, **_compress(net, data, bits, separation, args.other)})
            rows[-1]["points lost"] = 100 * (base - rows[-1]["accuracy"])
    Console().print(_table(rows, base))
    if args.out:
        write_text(args.out, json.dumps({"as pruned": base, "rows": rows}, indent=1) + "\n")
    return 0


def _pruned() -> LeNet5:
    net = LeNet5()
    with np.load(find_file("lenet5_mnist_pruned.npz"), allow_pickle=False) as file:
        net.load_state_dict({name: torch.from_numpy(file[name]).float() for name in file.files})
    return net.eval()


def _compress(net: LeNet5, data: MNISTDataModule, bits: int, separation: float, other: Other) -> Row:
    focused = copy.deepcopy(net)
    layers = focus_model_(focused, bits=bits, separation=separation)
    with tempfile.TemporaryDirectory() as folder:
        report = save_compressed(focused, Path(folder) / "model.effnn", other=other)
        again = LeNet5().eval()
        load_compressed(Path(folder) / "model.effnn", again)
    return {
        "focused layers": sum(layer.focused for layer in layers),
        "mse": float(np.mean([layer.mse for layer in layers])),
        "bytes": report.bytes,
        "ratio": report.ratio,
        "accuracy": _accuracy(again, data),
    }


@torch.no_grad()
def _accuracy(net: LeNet5, data: MNISTDataModule) -> float:
    right = total = 0
    for images, labels in data.test_dataloader():
        right += int((net(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def _table(rows: Sequence[Row], base: float) -> Table:
    table = Table(title=f"authors' pruned LeNet-5, {base:.2%} as it is", title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["bits"]), row["levels"], str(row["focused layers"]), f"{row['mse']:.1e}", f"{row['bytes']:,}",
            f"{row['ratio']:.1f}x", f"{row['accuracy']:.2%}", f"{row['points lost']:+.2f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
