"""Train networks dense and with FocusedCompression, several seeds; accuracy, bytes on disk, energy.

    EFFNN_DATA=/path/to/data effnn run benchmarks/compression --task lenet5 --seeds 5
    EFFNN_DATA=/path/to/data effnn run benchmarks/compression --task resnet20 --seeds 3

Results are kept in ``--out`` as they come; what is there is not run again. Accuracy is on the test set, of the network
loaded back from its file; ratios are of the fp32 weights (with biases and norms) to the whole file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from lightning_effnn import hardware
from lightning_effnn._files import write_whole
from lightning_effnn.callbacks import FocusedCompression
from lightning_effnn.compression import load_compressed
from lightning_effnn.data import CIFAR10DataModule, MNISTDataModule
from lightning_effnn.data._lookup import find_file
from lightning_effnn.modules import ImageClassifier, LeNet5, ResNetCIFAR

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is trained: network, data, dense fit, compressed fit. Both fits start from ``start``."""

    net: Callable[[], torch.nn.Module]
    data: Callable[[int], L.LightningDataModule]
    dense_epochs: int
    epochs: int
    optimizer: dict[str, Any]
    compression: dict[str, Any] = field(default_factory=dict)


def _resnet20() -> torch.nn.Module:
    """Pretrained weights; the dense fit fine-tunes them to the JPEG images first."""
    net = ResNetCIFAR(depth=20)
    net.load_state_dict(load_file(find_file("cifar10_resnet20.safetensors")))
    return net


TASKS = {
    "lenet5": Task(
        LeNet5,
        lambda seed: MNISTDataModule(batch_size=128, val_size=0, seed=seed),
        dense_epochs=20,
        epochs=30,
        optimizer={"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4},
        compression={
            "sparsity": 0.992,
            "bits": 4,
            "prune": (0.05, 0.55),
            "quantize": (0.6, 0.7),
            "method": "magnitude",
            "other": "int8",
        },
    ),
    "resnet20": Task(
        _resnet20,
        lambda seed: CIFAR10DataModule(batch_size=128, num_workers=0, seed=seed),
        dense_epochs=6,
        epochs=12,
        optimizer={"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4},
        compression={"sparsity": 0.75, "bits": 5, "prune": (0.0, 0.4), "quantize": (0.4, 0.7), "other": "fp16"},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/compression", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--task", choices=sorted(TASKS), default="lenet5")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, help="other than the task's own")
    parser.add_argument("--bits", type=int, help="other than the task's own")
    parser.add_argument("--epochs", type=int, help="of the compressed fit, other than the task's own")
    parser.add_argument("--dense-epochs", type=int, help="of the dense fit, other than the task's own")
    parser.add_argument("--out", type=Path, default=Path("runs/compression.json"))
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    chosen = {k: getattr(args, k) for k in ("sparsity", "bits") if getattr(args, k) is not None}
    settings = task.compression | chosen
    epochs, dense_epochs = args.epochs or task.epochs, args.dense_epochs or task.dense_epochs
    try:
        task.data(0).setup("fit")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        dense = _run(
            rows, args.out, {"task": args.task, "seed": seed, "epochs": dense_epochs, "kind": "dense"}, task, {}
        )
        key = {"task": args.task, "seed": seed, "epochs": epochs, "kind": "focused", **_plain(settings)}
        row = _run(rows, args.out, key, task, settings)
        print(
            f"seed {seed}: dense {dense['accuracy']:.2%}, focused {row['accuracy']:.2%} at {row['ratio']:.1f}x",
            flush=True,
        )
    Console().print(_table(rows))
    return 0


def _run(rows: list[Row], out: Path, key: Row, task: Task, settings: Row) -> Row:
    for row in rows:
        if all(row.get(k) == v for k, v in key.items()):
            return row
    start = time.perf_counter()
    L.seed_everything(key["seed"], verbose=False)
    data = task.data(key["seed"])
    model = ImageClassifier(task.net(), **task.optimizer)
    row = dict(key)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.effnn"
        callback = FocusedCompression(export=path, **settings) if settings else None
        callbacks: list[L.Callback] = [] if callback is None else [callback]
        trainer = L.Trainer(
            max_epochs=key["epochs"], callbacks=callbacks, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(model, data)
        row["accuracy"] = _accuracy(trainer, model, data)
        if callback is not None:
            again = ImageClassifier(task.net(), **task.optimizer)
            load_compressed(path, again)
            loaded = _accuracy(trainer, again, data)
            row |= {"equal after loading": loaded == row["accuracy"], "accuracy": loaded} | _sizes(callback)
    row["energy_uJ"] = _energy(model, data)
    row["minutes"] = (time.perf_counter() - start) / 60
    rows.append(row)
    write_whole(out, lambda beside: beside.write_text(json.dumps(rows, indent=1) + "\n"))
    return row


def _sizes(callback: FocusedCompression) -> Row:
    report, projector = callback.report, callback.projector
    assert report is not None
    assert projector is not None
    return {
        "bytes": report.bytes,
        "ratio": report.ratio,
        "bits_per_weight": report.bits_per_weight,
        "nonzero": round((1 - projector.sparsity) * sum(layer.latent.numel() for layer in projector.layers)),
        "focused_layers": projector.focused_layers,
        "formats": {layer.site.name: str(layer.declared()) for layer in projector.layers},
    }


def _accuracy(trainer: L.Trainer, model: L.LightningModule, data: L.LightningDataModule) -> float:
    (result,) = trainer.test(model, data, verbose=False)
    return float(result["test/acc"])


def _energy(model: ImageClassifier, data: L.LightningDataModule) -> float:
    images, _ = next(iter(data.test_dataloader()))
    return hardware.estimate(hardware.trace(model.net, images[:32]), "eyeriss_like").energy_uJ


def _plain(settings: Row) -> Row:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="median over seeds", title_justify="left")
    for heading in (
        "task",
        "kind",
        "sparsity",
        "bits",
        "seeds",
        "accuracy",
        "against dense mean",
        "ratio",
        "energy uJ",
    ):
        table.add_column(heading, justify="right")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["kind"], row.get("sparsity"), row.get("bits"), row["epochs"]), []).append(
            row
        )
    for (task, kind, sparsity, bits, _), members in groups.items():
        dense = [row["accuracy"] for row in rows if row["task"] == task and row["kind"] == "dense"]
        accuracy = statistics.median(row["accuracy"] for row in members)
        ratio = statistics.median(row.get("ratio", 1.0) for row in members)
        table.add_row(
            task, kind, str(sparsity or "-"), str(bits or "-"), str(len(members)), f"{accuracy:.2%}",
            f"{100 * (accuracy - statistics.mean(dense)):+.2f} points", f"{ratio:.1f}x",
            f"{statistics.median(row['energy_uJ'] for row in members):,.1f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
