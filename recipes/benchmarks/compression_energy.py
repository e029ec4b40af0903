"""Energy of ResNet-20 as sparsity rises, layer by layer: dense 8-bit against focused weights, both with 8-bit inputs.

    EFFNN_DATA=/path/to/data effnn run benchmarks/compression_energy --plot energy.png

One chip twice: eyeriss_like as its preset has it, where multiplications by zero are gated (they cost time but no
energy), and the same chip skipping them (they cost neither). Each layer is pruned to the same share of zeros.
There is no retraining, so a network pruned far computes something else, with other zeros in its activations; to show
what its weights save, all rows are priced with the shares of zeros that the activations of the dense network have.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_effnn import hardware
from lightning_effnn._files import write_figure, write_text
from lightning_effnn.compression import focus_model_, prune_model_, quantize_activations_
from lightning_effnn.data import CIFAR10DataModule
from lightning_effnn.modules import ResNetCIFAR
from lightning_effnn.quantization import quantize_

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a sparsity; say whether each layer's energy falls from row to row."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/compression_energy", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--bits", type=int, default=5)
    parser.add_argument("--images", type=int, default=16, help="of the test set, one batch")
    parser.add_argument("--out", type=Path, default=Path("runs/compression_energy.json"))
    parser.add_argument("--plot", type=Path, help="draw the layers' energy here")
    args = parser.parse_args(argv)
    try:
        net = ResNetCIFAR(depth=20, weights="cifar10_resnet20.safetensors").eval()
        data = CIFAR10DataModule(batch_size=args.images, limit=args.images)
        data.setup("test")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    images, _ = next(iter(data.test_dataloader()))
    gating = hardware.Accelerator.from_preset("eyeriss_like")
    skipping = replace(
        gating,
        name="with skipping",
        zeros={operand: replace(zeros, compute="skipping") for operand, zeros in gating.zeros.items()},
    )
    reference = hardware.trace(_dense(net, images), images)
    rows = []
    for chip in (gating, skipping):
        rows.append({"chip": chip.name, "weights": "int8", "sparsity": 0.0, **_cost(reference, chip)})
        for sparsity in sorted(args.sparsity):
            trace = hardware.trace(_focused(net, images, sparsity, args.bits), images)
            found = _cost(_with_activations_of(reference, trace), chip)
            rows.append({"chip": chip.name, "weights": f"focused {args.bits}", "sparsity": sparsity, **found})
    rising = _rising(rows)
    text = json.dumps({"rows": rows, "rising": rising}, indent=1) + "\n"
    write_text(args.out, text)
    Console().print(_table(rows))
    print(f"layers whose energy rises with sparsity: {', '.join(rising) or 'none'}")
    if args.plot:
        _plot(rows, args.plot)
    return 0


def _dense(net: ResNetCIFAR, images: torch.Tensor) -> ResNetCIFAR:
    dense = copy.deepcopy(net)
    with quantize_(dense, "W8A8").calibrating():
        dense(images)
    return dense


def _focused(net: ResNetCIFAR, images: torch.Tensor, sparsity: float, bits: int) -> ResNetCIFAR:
    focused = copy.deepcopy(net)
    if sparsity:
        prune_model_(focused, sparsity, scope="layer")
    focus_model_(focused, bits=bits)
    with quantize_activations_(focused, 8).calibrating():
        focused(images)
    return focused


def _with_activations_of(reference: hardware.Trace, trace: hardware.Trace) -> hardware.Trace:
    """``trace`` with the densities that activations have in ``reference``; the same operations in both."""
    operations = [
        replace(op, i_density=as_dense.i_density, o_density=as_dense.o_density)
        for op, as_dense in zip(trace.operations, reference.operations, strict=True)
    ]
    return replace(trace, operations=tuple(operations))


def _cost(trace: hardware.Trace, chip: hardware.Accelerator) -> Row:
    report = hardware.estimate(trace, chip)
    layers = {row["name"]: row["energy_pJ"] / 1e6 for row in report.rows() if row["macs"]}
    return {"energy_uJ": report.energy_uJ, "latency_us": report.latency_us, "layers": layers}


def _rising(rows: Sequence[Row]) -> list[str]:
    """Layers, with their chip, whose energy is higher at some sparsity than at the one before."""
    found = []
    for before, after in itertools.pairwise(rows):
        if before["chip"] == after["chip"] and before["weights"] == after["weights"]:
            for name, energy in after["layers"].items():
                if energy > before["layers"][name]:
                    found.append(f"{name} ({after['chip']}, {before['sparsity']:.0%} to {after['sparsity']:.0%})")
    return found


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="ResNet-20, one image", title_justify="left")
    for heading in ("chip", "weights", "zeros", "energy uJ", "of dense 8-bit", "latency us", "of dense 8-bit"):
        table.add_column(heading, justify="right")
    dense: Row = {}
    for row in rows:
        dense = row if row["weights"] == "int8" else dense
        table.add_row(
            row["chip"], row["weights"], f"{row['sparsity']:.0%}", f"{row['energy_uJ']:.1f}",
            f"{row['energy_uJ'] / dense['energy_uJ']:.2f}", f"{row['latency_us']:.0f}",
            f"{row['latency_us'] / dense['latency_us']:.2f}",
        )  # fmt: skip
    return table


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row["chip"] == rows[0]["chip"]]
    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    for shade, row in enumerate(shown):
        dense = row["weights"] == "int8"
        label = "int8, dense" if dense else f"{row['weights']}, {row['sparsity']:.0%} zeros"
        color = "black" if dense else plt.get_cmap("viridis")(shade / len(shown))
        axes.plot(list(row["layers"]), list(row["layers"].values()), marker="o", label=label, color=color)
    axes.set(ylabel="energy, uJ an image", title=f"ResNet-20 on {shown[0]['chip']}", ylim=(0, None))
    axes.tick_params(axis="x", rotation=90)
    figure.legend(loc="outside right upper")
    write_figure(path, figure)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
