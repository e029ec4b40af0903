"""Focused against plain powers of two, at equal bits, on the same pruned networks: without retraining, and retrained.

    effnn run benchmarks/focused_against_shift                                            # digits, minutes
    EFFNN_DATA=/path/to/data effnn run benchmarks/focused_against_shift --task lenet5     # MNIST

Each seed: a network is trained and pruned; a copy is quantised both ways as it is, and two more are trained on, both
ways, with the same batches. What counts is the loss on the test set: it tells apart what accuracy on a few hundred
images cannot. The separation test is off for the plain levels; where it doesn't fire for the others, both are the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import FocusedCompression
from lightning_effnn.compression import focus_model_
from lightning_effnn.data import DigitsDataModule, MNISTDataModule
from lightning_effnn.modules import ImageClassifier, LeNet5, SmallCNN

Row = dict[str, Any]
LEVELS = {"focused": 2.0, "shift": math.inf}
"""Kinds of levels, by the separation from which a layer is recentralised."""


@dataclass(frozen=True)
class Task:
    """A network, its data, its optimiser, and how far it is pruned in how many epochs."""

    net: Callable[[], nn.Module]
    data: Callable[[int], L.LightningDataModule]
    optimizer: dict[str, Any]
    sparsity: float
    epochs: int
    retrain_epochs: int


TASKS = {
    "digits": Task(
        SmallCNN,
        lambda seed: DigitsDataModule(batch_size=32, seed=seed),
        {"optimizer": "adamw", "lr": 0.01},
        0.9,
        20,
        10,
    ),
    "lenet5": Task(
        LeNet5,
        lambda seed: MNISTDataModule(batch_size=128, val_size=0, seed=seed),
        {"optimizer": "sgd", "lr": 0.03, "weight_decay": 5e-4},
        0.99,
        10,
        3,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print how often each kind of levels is ahead."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/focused_against_shift", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--task", choices=sorted(TASKS), default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--epochs", type=int, help="of the pruning fit, other than the task's own")
    parser.add_argument("--out", type=Path, default=Path("runs/focused_against_shift.json"))
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    try:
        for seed in range(args.seeds):
            known = {row["bits"] for row in rows if row["task"] == args.task and row["seed"] == seed}
            missing = [bits for bits in args.bits if bits not in known]
            if not missing:
                continue
            data = task.data(seed)
            pruned = _pruned(task, data, seed, args.epochs or task.epochs)
            for bits in missing:
                rows.append({"task": args.task, "seed": seed, "bits": bits, **_compare(task, data, pruned, seed, bits)})
                _keep(rows, args.out)
                print(f"seed {seed}, {bits} bits done", flush=True)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(_table(rows))
    return 0


def _keep(rows: Sequence[Row], path: Path) -> None:
    write_text(path, json.dumps(rows, indent=1) + "\n")


def _pruned(task: Task, data: L.LightningDataModule, seed: int, epochs: int) -> nn.Module:
    L.seed_everything(seed, verbose=False)
    net = task.net()
    callback = FocusedCompression(task.sparsity, prune=(0.1, 0.6), quantize=None, method="magnitude", scope="lamp")
    _fit(task, net, data, epochs, callback)
    return net


def _compare(task: Task, data: L.LightningDataModule, pruned: nn.Module, seed: int, bits: int) -> Row:
    row: Row = {"pruned": _evaluate(task, pruned, data)}
    for kind, separation in LEVELS.items():
        as_is = copy.deepcopy(pruned)
        layers = focus_model_(as_is, bits=bits, separation=separation)
        row[f"{kind}, as it is"] = _evaluate(task, as_is, data)
        row[f"{kind} layers"] = sum(layer.focused for layer in layers)
        retrained = copy.deepcopy(pruned)
        L.seed_everything(seed, verbose=False)
        callback = FocusedCompression(task.sparsity, bits, prune=(0.0, 0.0), quantize=(0.0, 0.5), separation=separation,
                                      method="magnitude", scope="lamp")  # fmt: skip
        _fit(task, retrained, data, task.retrain_epochs, callback, lr=task.optimizer["lr"] / 10)
        row[f"{kind}, retrained"] = _evaluate(task, retrained, data)
    row["layers"] = len(layers)
    return row


def _fit(
    task: Task, net: nn.Module, data: L.LightningDataModule, epochs: int, callback: L.Callback, **changes: Any
) -> None:
    model = ImageClassifier(net, **(task.optimizer | changes))
    _trainer(max_epochs=epochs, callbacks=[callback], limit_val_batches=0).fit(model, data)


def _evaluate(task: Task, net: nn.Module, data: L.LightningDataModule) -> Row:
    (result,) = _trainer().test(ImageClassifier(net, **task.optimizer), data, verbose=False)
    return {"loss": float(result["test/loss"]), "accuracy": float(result["test/acc"])}


def _trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", **options,
    )  # fmt: skip


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="test loss, mean over seeds; in how many seeds focused is ahead", title_justify="left")
    for heading in ("task", "bits", "pruned", "", "focused", "plain shift", "ahead", "layers focused"):
        table.add_column(heading, justify="right")
    for task, bits in sorted({(row["task"], row["bits"]) for row in rows}):
        chosen = [row for row in rows if (row["task"], row["bits"]) == (task, bits)]
        for phase in ("as it is", "retrained"):
            focused, shift = ([row[f"{kind}, {phase}"]["loss"] for row in chosen] for kind in LEVELS)
            ahead = sum(a < b for a, b in zip(focused, shift, strict=True))
            table.add_row(
                task, str(bits), f"{_mean([row['pruned']['loss'] for row in chosen]):.4f}", phase,
                f"{_mean(focused):.4f}", f"{_mean(shift):.4f}", f"{ahead} of {len(chosen)}",
                f"{_mean([row['focused layers'] for row in chosen]):.1f} of {chosen[0]['layers']}",
            )  # fmt: skip
    return table


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    raise SystemExit(main())
