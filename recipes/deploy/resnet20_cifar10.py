"""A pretrained ResNet-20 as integer files: accuracy on CIFAR-10, bytes and time against float32 and quantize_static.

Run it:         EFFNN_DATA=/path/to/data effnn run deploy/resnet20_cifar10
A quick check:  effnn run deploy/resnet20_cifar10 --images 500 --steps 10

Needs the extra deploy, cifar10_train_jpeg.npz, cifar10_test_jpeg.npz and cifar10_resnet20.safetensors. Ranges come from
512 training images. The last row is trained for --steps batches, prepared as it is deployed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from lightning_effnn import deploy
from lightning_effnn._files import write_text
from lightning_effnn.data import CIFAR10DataModule
from lightning_effnn.modules import ResNetCIFAR
from lightning_effnn.recipes.deploy._measured import Data, measured, table

_CALIBRATION, _BATCH = 512, 64
_HELD_OUT = 10  # what the data module holds out at least, an image a class


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a file; write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="effnn run deploy/resnet20_cifar10", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--plans", nargs="+", default=["W8A8", "W4A8"], help="see lightning_effnn.quantization.PRESETS")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--steps", type=int, default=150, help="batches to train on; none leaves the last row out")
    parser.add_argument("--repeats", type=int, default=200, help="of each timing")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    try:
        net = ResNetCIFAR(depth=20, weights="cifar10_resnet20.safetensors").eval()
        limit = max(_CALIBRATION, _BATCH * args.steps) + _HELD_OUT
        training = CIFAR10DataModule(batch_size=_BATCH, limit=limit, val_size=_HELD_OUT)
        training.setup("fit")
        test = CIFAR10DataModule(batch_size=250, limit=args.images)
        test.setup("test")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    batches = [(x, y) for x, y in training.train_dataloader()]
    data = Data([x for x, _ in batches[: _CALIBRATION // _BATCH]], list(test.test_dataloader()))

    def train_(prepared: deploy.Prepared) -> None:
        prepared.train()(batches[0][0])  # learned scales start from data
        optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-4)
        for step in range(args.steps):
            images, labels = batches[step % len(batches)]
            optimizer.zero_grad()
            loss: Tensor = F.cross_entropy(prepared(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    rows = measured(net, data, args.plans, args.repeats, train_ if args.steps else None)
    Console(width=160).print(table("ResNet-20, CIFAR-10, onnxruntime on one thread", rows))
    if args.out:
        write_text(args.out, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
