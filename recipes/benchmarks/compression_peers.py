"""Bytes on disk and accuracy of one network by FocusedCompression and by other libraries, several seeds, one table.

    effnn run benchmarks/compression_peers                                                # digits, 5 seeds
    EFFNN_DATA=/path/to/data effnn run benchmarks/compression_peers --task lenet5 --seeds 1

Every row has the same dense start and the same number of further epochs: of dense training (then quantised without
training, or not), of quantisation-aware training, of pruning, of FocusedCompression. Accuracy is on the test set, of
the integer network where there is one, of what the file gives back where it is a file of ours or of safetensors.

The peers' files are as small as their users can get them: codes packed to their width, scales, biases and the ranges
of inputs in fp32, normalisation folded, no header at all; and a zip of that, or of a byte a code if that is smaller.
FocusedCompression's is the whole ``.effnn``. Rows are kept in ``--out`` as they come; what is there is not run again.
The extra ``peers`` installs torchao and brevitas; what is missing is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import FocusedCompression
from lightning_effnn.compression import load_compressed, save_compressed
from lightning_effnn.data import DigitsDataModule, MNISTDataModule
from lightning_effnn.modules import ImageClassifier, LeNet5, SmallCNN
from lightning_effnn.recipes.benchmarks import _peers

Row = dict[str, Any]
CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Task:
    """What is trained: network, data, epochs of the dense start and after it, FocusedCompression's arguments."""

    net: Callable[[], nn.Module]
    data: Callable[[int], L.LightningDataModule]
    start_epochs: int
    epochs: int
    seeds: int
    optimizer: dict[str, Any]
    compression: dict[str, Any] = field(default_factory=dict)


TASKS = {
    "digits": Task(
        SmallCNN,
        lambda seed: DigitsDataModule(batch_size=32, val_fraction=0.1, test_fraction=0.4, seed=seed),
        start_epochs=10,
        epochs=20,
        seeds=5,
        optimizer={"optimizer": "adamw", "lr": 5e-3},
        compression={"sparsity": 0.7, "bits": 5, "prune": (0.0, 0.5), "quantize": (0.5, 0.8)},
    ),
    "lenet5": Task(
        LeNet5,
        lambda seed: MNISTDataModule(batch_size=128, val_size=0, seed=seed),
        start_epochs=2,
        epochs=4,
        seeds=1,
        optimizer={"optimizer": "adamw", "lr": 1e-3},
        compression={"sparsity": 0.95, "bits": 5, "prune": (0.0, 0.5), "quantize": (0.5, 0.8), "method": "magnitude"},
    ),
}


class Bench:
    """One seed of a task: its data, its dense start, and fits from there."""

    def __init__(self, task: Task, seed: int, start_epochs: int, epochs: int) -> None:
        self.task, self.seed, self.epochs = task, seed, epochs
        self.data = task.data(seed)
        self.data.prepare_data()
        self.data.setup("fit")
        self.data.setup("test")
        L.seed_everything(seed, verbose=False)
        self.start = self.fit(task.net(), epochs=start_epochs)
        self._trained: nn.Module | None = None

    def fit(self, net: nn.Module, callback: L.Callback | None = None, epochs: int | None = None) -> nn.Module:
        """Train a network, in place, and return it."""
        module = self.module(net)
        L.seed_everything(self.seed, verbose=False)
        with _peers.quiet(), tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(
                max_epochs=self.epochs if epochs is None else epochs,
                callbacks=[] if callback is None else [callback],
                default_root_dir=folder,
            )
            trainer.fit(module, self.data)
        return net

    def module(self, net: nn.Module) -> ImageClassifier:
        """The network with what trains and tests it; itself if it is that already."""
        return net if isinstance(net, ImageClassifier) else ImageClassifier(net, **self.task.optimizer)

    def from_start(self) -> nn.Module:
        """A copy of the dense start."""
        return copy.deepcopy(self.start)

    def trained(self) -> nn.Module:
        """A copy of the dense network after the further epochs."""
        if self._trained is None:
            self._trained = self.fit(self.from_start())
        return copy.deepcopy(self._trained)

    def accuracy(self, net: nn.Module) -> float:
        """On the test set."""
        with _peers.quiet():
            (found,) = _trainer().test(self.module(net), self.data, verbose=False)
        return float(found["test/acc"])

    def images(self, batches: int) -> list[Tensor]:
        """Of the first batches of the training set."""
        return [batch[0] for batch in islice(self.data.train_dataloader(), batches)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/compression_peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--task", choices=sorted(TASKS), default="digits")
    parser.add_argument("--seeds", type=int, help="how many; by default the task's own number")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--start-epochs", type=int, help="of the dense start, other than the task's own")
    parser.add_argument("--epochs", type=int, help="after it, other than the task's own")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/compression_peers.json"))
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    start_epochs, epochs = args.start_epochs or task.start_epochs, args.epochs or task.epochs
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    methods = [name for name in args.methods if _usable(name)]
    setting = {"task": args.task, "start_epochs": start_epochs, "epochs": epochs}
    keys = {name: {**setting, "run": name, **_arguments(task, name)} for name in METHODS}
    for seed in range(args.first_seed, args.first_seed + (args.seeds or task.seeds)):
        left = [name for name in methods if not any(_is_of(row, {**keys[name], "seed": seed}) for row in rows)]
        if not left:
            continue
        try:
            bench = Bench(task, seed, start_epochs, epochs)
        except FileNotFoundError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for name in left:
            for row in METHODS[name](bench):
                rows.append({**keys[name], "seed": seed, **row})
                print(f"seed {seed}: {row['method']}: {row['bytes']:,} bytes, {row['accuracy']:.2%}", flush=True)
            write_text(args.out, json.dumps(rows, indent=1) + "\n")
    Console().print(_table([row for row in rows if any(_is_of(row, key) for key in keys.values())], args.task))
    return 0


def _dense(bench: Bench) -> list[Row]:
    net = bench.trained()
    return _fp32_rows("dense fp32", net, bench.accuracy(net))


def _pruned(bench: Bench) -> list[Row]:
    settings = {k: v for k, v in bench.task.compression.items() if k != "bits"} | {"quantize": None}
    net = bench.fit(bench.from_start(), FocusedCompression(**settings))
    return _fp32_rows("pruned fp32", net, bench.accuracy(net))


def _focused(bench: Bench) -> list[Row]:
    return _focused_rows(bench, "FocusedCompression", None)


def _focused_inputs(bench: Bench) -> list[Row]:
    return _focused_rows(bench, "FocusedCompression, 8-bit inputs", 8)


def _focused_denser(bench: Bench) -> list[Row]:
    return _focused_rows(bench, "FocusedCompression, 50 % zeros", None, sparsity=0.5)


def _focused_rows(bench: Bench, method: str, activations: int | None, **changes: float) -> list[Row]:
    """Of one fit, with biases and norms in fp32 and in fp16."""
    settings, module = bench.task.compression | changes, bench.module(bench.from_start())
    bench.fit(module, FocusedCompression(**settings, activations=activations))
    rows = []
    files: tuple[tuple[Literal["fp32", "fp16"], str], ...] = (("fp32", method), ("fp16", f"{method}, fp16 biases"))
    for other, name in files:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.effnn"
            size = save_compressed(module, path, other=other).bytes
            again = load_compressed(path, bench.module(bench.task.net()))
        rows.append({"method": name, "bits": settings["bits"], "bytes": size, "accuracy": bench.accuracy(again)})
    return rows


def _torchao_static(bench: Bench) -> list[Row]:
    rows = []
    for bits in (8, 4):
        net = _peers.torchao_static(bench.trained(), bench.images(CALIBRATION_BATCHES), bits)
        stored = _peers.torchao_stored(net, bits)
        rows += _coded_rows("torchao PT2E, no training", bits, stored, bench.accuracy(net))
    return rows


def _torchao_weight_only(bench: Bench) -> list[Row]:
    rows = []
    for bits in (8, 4):
        net = _peers.torchao_weight_only(bench.trained(), bits)
        stored = _peers.weight_only_stored(net, bits)
        rows += _coded_rows("torchao weight-only, linear", bits, stored, bench.accuracy(net))
    return rows


def _torchao_qat(bench: Bench) -> list[Row]:
    rows = []
    for bits in (8, 4):
        prepared = _peers.torchao_training(bench.from_start().train(), bench.images(1)[0], bits)
        net = _peers.torchao_converted(bench.fit(prepared))
        rows += _coded_rows("torchao QAT", bits, _peers.torchao_stored(net, bits), bench.accuracy(net))
    return rows


def _brevitas_qat(bench: Bench) -> list[Row]:
    rows = []
    for bits in (8, 4):
        net = bench.fit(_peers.brevitas_training(bench.from_start(), bits)).eval()
        rows += _coded_rows("brevitas QAT", bits, _peers.brevitas_stored(net, bits), bench.accuracy(net))
    return rows


METHODS: dict[str, Callable[[Bench], list[Row]]] = {
    "dense": _dense,
    "torchao_weight_only": _torchao_weight_only,
    "torchao_static": _torchao_static,
    "torchao_qat": _torchao_qat,
    "brevitas_qat": _brevitas_qat,
    "pruned": _pruned,
    "focused": _focused,
    "focused_inputs": _focused_inputs,
    "focused_denser": _focused_denser,
}
OURS = ("pruned", "focused", "focused_inputs", "focused_denser")


def _arguments(task: Task, name: str) -> Row:
    """What tells rows of other settings apart, as it comes back from JSON."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in task.compression.items()}
    return {"compression": plain} if name in OURS else {}


def _usable(name: str) -> bool:
    library = name.partition("_")[0]
    reason = _peers.missing(library) if library in ("torchao", "brevitas") else ""
    if reason:
        print(f"{name}: left out: {reason}", flush=True)
    return not reason


def _trainer(**settings: Any) -> L.Trainer:
    return L.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", limit_val_batches=0, **settings,
    )  # fmt: skip


def _fp32_rows(method: str, net: nn.Module, accuracy: float) -> list[Row]:
    """A safetensors file and its zip, of which the network is loaded back bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
        loaded = load_file(path)
        if not all(torch.equal(tensor, loaded[name]) for name, tensor in net.state_dict().items()):
            raise ValueError(f"{method}: the file does not hold the network")
        plain, zipped = path.stat().st_size, zipped_bytes(path.read_bytes())
    row = {"bits": 32, "accuracy": accuracy}
    return [{"method": method, "bytes": plain, **row}, {"method": f"{method}, zip", "bytes": zipped, **row}]


def _coded_rows(method: str, bits: int, stored: _peers.Stored, accuracy: float) -> list[Row]:
    packed, wide = stored.to_bytes(packed=True), stored.to_bytes(packed=False)
    row = {"bits": bits, "accuracy": accuracy}
    zipped = min(zipped_bytes(packed), zipped_bytes(wide))
    return [{"method": method, "bytes": len(packed), **row}, {"method": f"{method}, zip", "bytes": zipped, **row}]


def zipped_bytes(data: bytes) -> int:
    """Size of a zip file that holds ``data``, deflated as far as it goes.

    >>> zipped_bytes(bytes(100_000)) < 300
    True
    """
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.writestr("model", data)
        return file.tell()


def _is_of(row: Row, key: Row) -> bool:
    return all(row.get(name) == value for name, value in key.items())


def _table(rows: Sequence[Row], task: str) -> Table:
    """Means over seeds, the smallest file first; changes against dense training of the same seed and length."""
    table = Table(title=f"{task}: means over seeds; points are against dense", title_justify="left")
    for heading in ("method", "bits", "bytes", "ratio", "accuracy", "points", "seeds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    dense = {row["seed"]: row for row in rows if row["method"] == "dense fp32"}
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["bits"]), []).append(row)
    for (method, bits), members in sorted(groups.items(), key=lambda item: _mean(item[1], "bytes")):
        pairs = [(row, dense[row["seed"]]) for row in members if row["seed"] in dense]
        ratio = statistics.mean(d["bytes"] / row["bytes"] for row, d in pairs) if pairs else None
        change = 100 * statistics.mean(row["accuracy"] - d["accuracy"] for row, d in pairs) if pairs else None
        table.add_row(
            method, str(bits), f"{_mean(members, 'bytes'):,.0f}", "-" if ratio is None else f"{ratio:.1f}x",
            f"{_mean(members, 'accuracy'):.2%}", "-" if change is None else f"{change:+.2f}", str(len(members)),
        )  # fmt: skip
    return table


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(statistics.mean(row[name] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
