"""Time a training step and watch memory with each callback and with all of them: ResNet-20, CIFAR-shaped noise.

effnn run benchmarks/callbacks_overhead                       # 1,000 steps with all, then 4 rounds of 32 steps each
effnn run benchmarks/callbacks_overhead --rounds 1 --steps 16 --memory-steps 100 --batch-size 4    # shorter

Seconds are of the processor, the mean of a step in the middle of the fit, when everything is at work: weights are
rounded, bits are searched, every step is attacked, one batch in a round is traced. The least of the rounds counts, for
other work on a machine only adds to it. Memory is what the process holds (Linux).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor, LowPrecisionSearch, SpongeTraining
from lightning_effnn.modules import ImageClassifier, ResNetCIFAR

PLAIN, ALL = "none", "all"
CALLBACKS: dict[str, Callable[[], Any]] = {
    "HardwareEnergyMonitor": lambda: HardwareEnergyMonitor("eyeriss_like", stage="train", table_every_n_epochs=0),
    "FocusedCompression": lambda: FocusedCompression(0.8, prune=(0.0, 0.1), quantize=(0.1, 0.2)),
    "LowPrecisionSearch": lambda: LowPrecisionSearch((), (4, 8), "bits", warmup=0.0, freeze=1.0),
    "SpongeTraining": lambda: SpongeTraining(attack="pgd", steps=1),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0 if all together take no more than the sum and memory does not grow."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/callbacks_overhead", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=32, help="steps that are timed in a round (a multiple of 8)")
    parser.add_argument("--memory-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    held = _memory(args.memory_steps, args.batch_size)  # first: what earlier fits have freed would hide a growth
    seconds: dict[str, list[float]] = {name: [] for name in (PLAIN, *CALLBACKS, ALL)}
    for _ in range(args.rounds):  # in turns: a machine is not as fast in every minute
        for name, found in seconds.items():
            found.append(_seconds_a_step(name, args.steps, args.batch_size))
            print(f"{name}: {found[-1]:.4f} s a step", flush=True)
    least = {name: min(found) for name, found in seconds.items()}
    singles = sum(least[name] - least[PLAIN] for name in CALLBACKS)
    together = least[ALL] - least[PLAIN]
    growth = _growth(held)
    result = {
        "batch size": args.batch_size,
        "seconds a step": least,
        "rounds": seconds,
        "sum of the single overheads": singles,
        "overhead of all": together,
        "memory steps": args.memory_steps,
        "memory MB": held,
        "growth of memory": growth,
    }
    Console().print(_table(least))
    print(f"overhead of all {together:.4f} s, sum of the single ones {singles:.4f} s")
    print(f"memory over {args.memory_steps} steps: {growth:+.2%}")
    if args.out:
        text = json.dumps(result, indent=1) + "\n"
        write_text(args.out, text)
    return 0 if together <= singles and growth < 0.01 else 1


class _Watch(L.Callback):
    """Times the steps of the second epoch, looks at the memory every tenth step."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0
        self.held: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.start = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.is_last_batch:
            self.seconds = (time.process_time() - self.start) / trainer.num_training_batches
        if trainer.global_step % 10 == 0:
            self.held.append(_resident_mb())


def _fit(name: str, steps: int, epochs: int, batch_size: int) -> _Watch:
    L.seed_everything(0, verbose=False)
    watch = _Watch()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8 * batch_size, 3, 32, 32, generator=generator)
    data = TensorDataset(images, torch.arange(len(images)) % 10)
    callbacks = [make() for which, make in CALLBACKS.items() if name in (which, ALL)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            max_epochs=epochs,
            callbacks=[*callbacks, watch],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        repeated: Any = torch.utils.data.ConcatDataset([data] * max(1, steps // 8))
        trainer.fit(ImageClassifier(ResNetCIFAR(depth=20), schedule="constant"), DataLoader(repeated, batch_size))
    return watch


def _seconds_a_step(name: str, steps: int, batch_size: int) -> float:
    return _fit(name, steps, 2, batch_size).seconds


def _memory(steps: int, batch_size: int) -> list[float]:
    """MB held, every tenth step of a fit of ten epochs with all callbacks."""
    return _fit(ALL, steps // 10, 10, batch_size).held


def _growth(held: Sequence[float]) -> float:
    """Of the mean of the last tenth over that of the fifth before the middle, when all is set up."""
    tenth = max(1, len(held) // 10)
    return statistics.mean(held[-tenth:]) / statistics.mean(held[3 * tenth : 4 * tenth]) - 1


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def markdown(result: dict[str, Any]) -> str:
    """Step times and memory as the card shows them."""
    least = result["seconds a step"]
    lines = ["| callbacks | seconds a step | overhead |", "| --- | --- | --- |"]
    lines += [f"| {name} | {value:.3f} | {value / least[PLAIN] - 1:+.0%} |" for name, value in least.items()]
    together, singles = result["overhead of all"], result["sum of the single overheads"]
    lines += [
        "",
        f"All together add {together:.3f} s to a step, the single ones in sum {singles:.3f} s. Memory over"
        f" {result['memory steps']:,} steps with all: {result['growth of memory']:+.2%}.",
    ]
    return "\n".join(lines)


def _table(least: dict[str, float]) -> Table:
    table = Table(title="A step of ResNet-20", title_justify="left")
    for heading in ("callbacks", "seconds", "overhead"):
        table.add_column(heading, justify="right")
    for name, value in least.items():
        table.add_row(name, f"{value:.4f}", f"{value / least[PLAIN] - 1:+.1%}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
