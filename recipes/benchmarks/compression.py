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
from typing import Any, Literal

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from lightning_effnn import hardware
from lightning_effnn._files import write_text, write_whole
from lightning_effnn.callbacks import FocusedCompression
from lightning_effnn.compression import load_compressed
from lightning_effnn.data import CIFAR10DataModule, MNISTDataModule, SST2DataModule
from lightning_effnn.modules import ImageClassifier, LeNet5, ResNetCIFAR, TextTransformer

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is trained: network, data, dense fit, compressed fit."""

    net: Callable[[], torch.nn.Module]
    data: Callable[[int], L.LightningDataModule]
    dense_epochs: int
    epochs: int
    optimizer: dict[str, Any]
    compression: dict[str, Any] = field(default_factory=dict)
    dense_optimizer: dict[str, Any] | None = None
    """Of the dense fit, where it is another."""
    from_dense: bool = False
    """Whether the compressed fit goes on from the dense network of the same seed, or starts where that started."""
    teaching: dict[str, Any] | None = None
    """How the dense network of the same seed teaches the compressed one; it doesn't where this is None."""
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    """Of training only, which is two to three times faster on CPUs that have it; accuracy is of fp32 arithmetic."""


def _resnet20() -> torch.nn.Module:
    """Pretrained weights; the dense fit fine-tunes them to the JPEG images first."""
    return ResNetCIFAR(depth=20, weights="cifar10_resnet20.safetensors")


TASKS = {
    "lenet5": Task(
        LeNet5,
        lambda seed: MNISTDataModule(batch_size=128, val_size=0, seed=seed, shift=2),
        dense_epochs=20,
        epochs=30,
        # what few weights are left have no room to spare for decay
        optimizer={"optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4},
        dense_optimizer={"optimizer": "sgd", "lr": 0.03, "weight_decay": 5e-4},
        compression={
            "sparsity": 0.9892,
            "bits": 4,
            "prune": (0.0, 0.4),
            "quantize": (0.5, 0.65),
            "method": "magnitude",
            "scope": "lamp",
            "other": "int8",
        },
        from_dense=True,
        teaching={"distillation": 0.7, "temperature": 2.0},
    ),
    "resnet20": Task(
        _resnet20,
        lambda seed: CIFAR10DataModule(batch_size=128, num_workers=0, seed=seed),
        dense_epochs=6,
        epochs=24,
        optimizer={"optimizer": "sgd", "lr": 0.04, "weight_decay": 1e-4},
        dense_optimizer={"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4},
        compression={
            "sparsity": 0.758,
            "bits": 4,
            "prune": (0.0, 0.3),
            "quantize": (0.3, 0.5),
            "method": "magnitude",
            "scope": "lamp",
            "other": "fp16",
        },
        from_dense=True,
        teaching={"distillation": 0.9, "temperature": 4.0},
    ),
    "sst2": Task(
        lambda: TextTransformer(vocab_size=7206, dropout=0.5),
        lambda seed: SST2DataModule(batch_size=64, seed=seed),
        dense_epochs=12,
        epochs=16,
        optimizer={"num_classes": 2, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        compression={
            "sparsity": 0.9,
            "bits": 5,
            "prune": (0.1, 0.5),
            "quantize": (0.5, 0.8),
            "method": "magnitude",
            "scope": "layer",  # one threshold for all would empty the feed-forward layers
            "other": "fp16",
        },
        precision="32-true",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/compression", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--task", choices=sorted(TASKS), default="lenet5")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", type=_setting, dest="changes",
                        help="another argument of FocusedCompression, as JSON; repeatable")  # fmt: skip
    parser.add_argument("--epochs", type=int, help="of the compressed fit, other than the task's own")
    parser.add_argument("--dense-epochs", type=int, help="of the dense fit, other than the task's own")
    parser.add_argument("--out", type=Path, default=Path("runs/compression.json"))
    parser.add_argument("--dense", type=Path, default=Path("runs/dense"), help="folder where dense networks are kept")
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    try:
        task.data(0).setup("fit")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bench = Bench(args.task, task, args.out, args.dense)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        dense = bench.dense(seed, args.dense_epochs or task.dense_epochs)
        row = bench.focused(seed, args.epochs or task.epochs, task.compression | dict(args.changes))
        print(
            f"seed {seed}: dense {dense['accuracy']:.2%}, focused {row['accuracy']:.2%} at {row['ratio']:.1f}x",
            flush=True,
        )
    Console().print(_table(bench.rows))
    return 0


class Bench:
    """Fits of one task; rows that are in the file already aren't run again."""

    def __init__(self, name: str, task: Task, out: Path, folder: Path) -> None:
        self.name, self.task, self.out, self.folder = name, task, out, folder
        self.rows: list[Row] = json.loads(out.read_text()) if out.exists() else []

    def dense(self, seed: int, epochs: int) -> Row:
        """Train the dense network and keep it, for the compressed fit to start from."""
        optimizer = self.task.dense_optimizer or self.task.optimizer
        key = self._key("dense", seed, epochs, {}) | {"optimizer": optimizer}
        known = self._known(key)
        if known is not None and (self._weights(seed).exists() or not self.task.from_dense):
            return known
        model, data, start = self._model(seed, optimizer), self.task.data(seed), time.perf_counter()
        self._trainer(epochs).fit(model, data)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            self._weights(seed),
            lambda beside: save_file({k: v.contiguous() for k, v in model.net.state_dict().items()}, beside),
        )
        row = key | {"accuracy": self._accuracy(model, data), "energy_uJ": _energy(model, data)}
        return self._keep(row, start)

    def focused(self, seed: int, epochs: int, settings: Row) -> Row:
        """Train on with compression; accuracy is that of the network loaded back from the file."""
        key = self._key("focused", seed, epochs, settings) | (
            {"teaching": self.task.teaching} if self.task.teaching else {}
        )
        known = self._known(key)
        if known is not None:
            return known
        model, data, start = self._model(seed), self.task.data(seed), time.perf_counter()
        if self.task.from_dense:
            model.net.load_state_dict(load_file(self._weights(seed)))
        if self.task.teaching is not None:
            teacher = self.task.net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            teacher.load_state_dict(load_file(self._weights(seed)))
            model = ImageClassifier(model.net, **self.task.optimizer, teacher=teacher, **self.task.teaching)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.effnn"
            callback = FocusedCompression(export=path, **settings)
            self._trainer(epochs, callback).fit(model, data)
            again = self._model(seed)
            load_compressed(path, again)
        trained, loaded = self._accuracy(model, data), self._accuracy(again, data)
        row = key | {"accuracy": loaded, "equal after loading": loaded == trained}
        return self._keep(row | _sizes(callback) | {"energy_uJ": _energy(model, data)}, start)

    def _key(self, kind: str, seed: int, epochs: int, settings: Row) -> Row:
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
        return {
            "task": self.name, "kind": kind, "seed": seed, "epochs": epochs, "optimizer": self.task.optimizer,
            "settings": plain,
        }  # fmt: skip

    def _known(self, key: Row) -> Row | None:
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def _keep(self, row: Row, start: float) -> Row:
        row["minutes"] = (time.perf_counter() - start) / 60
        # another process may have written in the meantime
        self.rows = json.loads(self.out.read_text()) if self.out.exists() else []
        self.rows.append(row)
        write_text(self.out, json.dumps(self.rows, indent=1) + "\n")
        return row

    def _weights(self, seed: int) -> Path:
        return self.folder / f"{self.name}-{seed}.safetensors"

    def _model(self, seed: int, optimizer: dict[str, Any] | None = None) -> ImageClassifier:
        L.seed_everything(seed, verbose=False)
        net = self.task.net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return ImageClassifier(net, **(optimizer or self.task.optimizer))

    def _trainer(self, epochs: int, *callbacks: L.Callback, precision: Any = None) -> L.Trainer:
        return L.Trainer(
            max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", limit_val_batches=0,
            precision=precision or self.task.precision,
        )  # fmt: skip

    def _accuracy(self, model: L.LightningModule, data: L.LightningDataModule) -> float:
        (result,) = self._trainer(1, precision="32-true").test(model, data, verbose=False)
        return float(result["test/acc"])


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


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


def _energy(model: ImageClassifier, data: L.LightningDataModule) -> float:
    images, _ = next(iter(data.test_dataloader()))
    return hardware.estimate(hardware.trace(model.net, images[:32]), "eyeriss_like").energy_uJ


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="median over seeds", title_justify="left")
    for heading in ("task", "kind", "sparsity", "bits", "seeds", "accuracy", "to dense mean", "ratio", "energy uJ"):
        table.add_column(heading, justify="right")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row[k] for k in ("task", "kind", "epochs", "optimizer", "settings")])
        groups.setdefault(key, []).append(row)
    for members in groups.values():
        task, kind, settings = (members[0][k] for k in ("task", "kind", "settings"))
        optimizer = TASKS[task].dense_optimizer or TASKS[task].optimizer
        dense = [
            row["accuracy"]
            for row in rows
            if row["task"] == task and row["kind"] == "dense" and row["optimizer"] == optimizer
        ]
        accuracy = statistics.median(row["accuracy"] for row in members)
        against = f"{100 * (accuracy - statistics.mean(dense)):+.2f} points" if dense else "-"
        ratio = statistics.median(row.get("ratio", 1.0) for row in members)
        table.add_row(
            task, kind, str(settings.get("sparsity", "-")), str(settings.get("bits", "-")), str(len(members)),
            f"{accuracy:.2%}", against, f"{ratio:.1f}x",
            f"{statistics.median(row['energy_uJ'] for row in members):,.1f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
