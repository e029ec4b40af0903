"""Bits by search against uniform bits: accuracy, mean bits, simulated energy and time of a fit.

    EFFNN_DATA=/path/to/data effnn run benchmarks/search_bits --task resnet20 --seeds 3
    effnn run benchmarks/search_bits --task digits --epochs 8

All fits of a seed start from the same dense network and take the same number of epochs. Uniform bits have 8 in the
first and the last layer and learned scales throughout; the search spends its first fifth in fp32. Accuracy is on the
test set of the network with its quantisers; energy is that of one inference on eyeriss_like. Results are kept in
``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from lightning_effnn import hardware
from lightning_effnn._files import write_figure
from lightning_effnn.callbacks import LowPrecisionSearch
from lightning_effnn.data import DigitsDataModule
from lightning_effnn.modules import SmallCNN
from lightning_effnn.quantization import QuantizationPlan, ScaleOptimizer, quantize_
from lightning_effnn.recipes.benchmarks.compression import TASKS as COMPRESSED
from lightning_effnn.recipes.benchmarks.compression import Bench, Task

Row = dict[str, Any]
TASKS = {
    "resnet20": replace(COMPRESSED["resnet20"], epochs=5, optimizer=COMPRESSED["resnet20"].dense_optimizer or {}),
    "sst2": replace(COMPRESSED["sst2"], epochs=8, from_dense=True),
    "digits": Task(
        SmallCNN,
        lambda seed: DigitsDataModule(seed=seed),
        dense_epochs=15,
        epochs=8,
        optimizer={"optimizer": "adamw", "lr": 3e-3},
        from_dense=True,
        precision="32-true",
    ),
}
UNIFORM = ("W8A8", "W6A8", "W4A8", "W4A4")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table, draw the figure."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/search_bits", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--task", choices=sorted(TASKS), default="digits")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--uniform", nargs="*", choices=UNIFORM, default=UNIFORM)
    parser.add_argument("--cost-weights", type=float, nargs="*", default=[0.1, 0.3, 1.0])
    parser.add_argument("--cost", choices=("energy", "bits", "bops"), default="energy")
    parser.add_argument("--epochs", type=int, help="of each fit, other than the task's own")
    parser.add_argument("--out", type=Path, default=Path("runs/search_bits.json"))
    parser.add_argument("--dense", type=Path, default=Path("runs/dense"), help="folder where dense networks are kept")
    parser.add_argument("--plot", type=Path, help="picture of accuracy over energy")
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    try:
        task.data(0).setup("fit")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bench = BitsBench(args.task, task, args.out, args.dense)
    epochs = args.epochs or task.epochs
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        bench.dense(seed, task.dense_epochs)
        for name in args.uniform:
            bench.fit(seed, epochs, {"uniform": name})
        for weight in args.cost_weights:
            bench.fit(seed, epochs, {"cost": args.cost, "cost_weight": weight})
    rows = [row for row in bench.rows if row["task"] == args.task]
    Console().print(_table(rows))
    if args.plot:
        _plot(rows, args.plot)
    return 0


class BitsBench(Bench):
    """Fits of one task with quantisers; rows that are in the file already aren't run again."""

    def fit(self, seed: int, epochs: int, settings: Row) -> Row:
        """Train on from the dense network, with uniform bits or with the search."""
        key = self._key("bits", seed, epochs, settings)
        known = self._known(key)
        if known is not None:
            return known
        model, data, start = self._model(seed), self.task.data(seed), time.perf_counter()
        model.net.load_state_dict(load_file(self._weights(seed)))
        callback = (
            _Uniform(settings["uniform"])
            if "uniform" in settings
            else LowPrecisionSearch(cost=settings["cost"], cost_weight=settings["cost_weight"], seed=seed)
        )
        trainer = L.Trainer(
            max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            precision=self.task.precision,
        )  # fmt: skip
        spent = time.process_time()
        trainer.fit(model, data)
        spent = time.process_time() - spent
        plan = callback.plan
        assert isinstance(plan, QuantizationPlan)
        data.setup("test")
        x = next(iter(data.test_dataloader()))[0][:1]
        bits = plan.average_bits(model, x)
        row = key | {
            "accuracy": self._accuracy(model, data),
            "bits_w": bits.weights,
            "bits_a": bits.activations,
            "energy_uJ": hardware.estimate(hardware.trace(model.net, x), "eyeriss_like").energy_uJ,
            "fit_cpu_s": spent,
            "plan": {"weights": dict(plan.weights), "activations": dict(plan.activations)},
        }
        print(f"seed {seed} {settings}: {row['accuracy']:.2%}, {row['bits_w']:.2f} bits a weight,"
              f" {row['energy_uJ']:.1f} uJ", flush=True)  # fmt: skip
        return self._keep(row, start)


class _Uniform(L.Callback):
    """The same bits from the start of the fit, learned scales."""

    def __init__(self, preset: str) -> None:
        self.preset = preset
        self.plan: QuantizationPlan | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.plan = QuantizationPlan.preset(self.preset, pl_module)
        attachment = quantize_(pl_module, self.plan, scale="learned")
        self.scales = ScaleOptimizer(attachment.quantizers.parameters())

    def on_train_batch_end(self, *_: Any) -> None:
        self.scales.step()


def _label(row: Row) -> str:
    settings = row["settings"]
    if row["kind"] == "dense":
        return "fp32"
    return settings.get("uniform") or f"search, {settings['cost']} x {settings['cost_weight']}"


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{_label(row)}, {row['epochs']} epochs", []).append(row)
    return groups


def _mean(rows: Sequence[Row], key: str) -> float:
    """Of a figure; of the dense network, for which there is none, its 32 bits."""
    values: list[float] = [row.get(key, 32.0) for row in rows]
    return statistics.mean(values)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="mean over seeds", title_justify="left")
    for heading in ("bits", "seeds", "accuracy", "weights", "activations", "energy uJ", "seconds"):
        table.add_column(heading, justify="right")
    for label, members in _groups(rows).items():
        mean = {key: _mean(members, key) for key in ("accuracy", "bits_w", "bits_a", "energy_uJ", "minutes")}
        table.add_row(
            label, str(len(members)), f"{mean['accuracy']:.2%}", f"{mean['bits_w']:.2f}", f"{mean['bits_a']:.2f}",
            f"{mean['energy_uJ']:,.1f}", f"{60 * mean['minutes']:,.0f}",
        )  # fmt: skip
    return table


def _plot(rows: Sequence[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for label, members in _groups(rows).items():
        if label.startswith("fp32"):
            axes.axhline(100 * _mean(members, "accuracy"), color="gray", linestyle=":", label=label)
            continue
        x, y, found = _mean(members, "energy_uJ"), 100 * _mean(members, "accuracy"), "search" in label
        axes.plot([x], [y], "o" if found else "s", label=label, color=None if found else "black",
                  fillstyle="full" if found else "none")  # fmt: skip
        name = label.split(", ")[1 if found else 0]
        axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("energy of an inference on eyeriss_like [uJ]")
    axes.set_ylabel("test accuracy [%]")
    axes.legend(fontsize=8)
    write_figure(path, figure)


if __name__ == "__main__":
    raise SystemExit(main())
