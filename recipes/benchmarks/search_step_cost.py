"""What LowPrecisionSearch adds to a training step of a ResNet: the ratio to a fit without it, in the same run.

    effnn run benchmarks/search_step_cost --sizes 16 --rounds 10

A round times, for each variant, the steps of two whole cycles of comparisons in the middle of a short fit; variants
take turns. Shown are the median and the quartiles over rounds of the ratio to the plain fit of the same round. Time is
the process's own on the CPU, with one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import LowPrecisionSearch
from lightning_effnn.callbacks.low_precision_search import COMPARE_EVERY
from lightning_effnn.modules import ImageClassifier, ResNetCIFAR
from lightning_effnn.recipes.benchmarks._peers import quiet

Row = dict[str, Any]
VARIANTS: dict[str, dict[str, float] | None] = {
    "without": None,
    "searching": {"warmup": 0.0, "freeze": 1.0},
    "bits chosen": {"warmup": 0.0, "freeze": 0.0},
}
FIRST, STEPS = COMPARE_EVERY, 2 * COMPARE_EVERY


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each batch size and variant; write them as JSON."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/search_step_cost", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 128], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--depth", type=int, default=20, help="of the ResNet, 6n + 2")
    parser.add_argument("--out", type=Path, default=Path("runs/search_step_cost.json"))
    args = parser.parse_args(argv)
    if args.rounds < 2 or min(args.sizes) < 2:
        print(f"error: --rounds and --sizes must be at least 2, got {args.rounds}, {args.sizes}", file=sys.stderr)
        return 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        for size in args.sizes:
            rows += _measure(size, args.rounds, args.depth)
            text = json.dumps(rows, indent=1) + "\n"
            write_text(args.out, text)
    finally:
        torch.set_num_threads(threads)
    Console().print(_table(rows))
    return 0


def _measure(size: int, rounds: int, depth: int) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        for name in list(VARIANTS) if number % 2 else reversed(VARIANTS):
            times[name].append(_time(size, depth, VARIANTS[name]))
        print(f"batch {size}: round {number + 1} of {rounds}", flush=True)
    rows = []
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["without"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        ms = 1e3 * statistics.median(taken) / STEPS
        rows.append({"batch": size, "variant": name, "ms": ms, "ratio": middle, "low": low, "high": high,
                     "rounds": rounds})  # fmt: skip
    return rows


class _Stopwatch(L.Callback):
    """Time from the start of one step to that of another; first among the callbacks."""

    def __init__(self) -> None:
        self.began = self.taken = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if index == FIRST:
            self.began = time.process_time()
        elif index == FIRST + STEPS:
            self.taken = time.process_time() - self.began


def _time(size: int, depth: int, window: dict[str, float] | None) -> float:
    torch.manual_seed(0)
    batches = FIRST + STEPS + 1
    data = TensorDataset(torch.rand(size * batches, 3, 32, 32), torch.randint(10, (size * batches,)))
    watch = _Stopwatch()
    callbacks: list[L.Callback] = [watch]
    if window is not None:
        callbacks.append(LowPrecisionSearch(**window))  # type: ignore[arg-type]
    module = ImageClassifier(ResNetCIFAR(depth=depth), optimizer="sgd", lr=0.01, schedule="constant")
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        L.Trainer(
            max_epochs=1, callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
        ).fit(module, DataLoader(data, size), DataLoader(data, size))  # fmt: skip
    return watch.taken


def _table(rows: Sequence[Row]) -> Table:
    title = "a training step, CPU, one thread; ratio to a fit without the search"
    table = Table(title=title, title_justify="left")
    for heading in ("batch", "variant", "ms", "ratio", "quartiles"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]), row["variant"], f"{row['ms']:.1f}", f"{row['ratio']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
