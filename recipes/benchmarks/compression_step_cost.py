"""Cost of a training step with FocusedCompression and with other libraries' quantisation, against a plain one.

    effnn run benchmarks/compression_step_cost                        # ResNet-20, random images, batch 16 and 128
    effnn run benchmarks/compression_step_cost --sizes 16 --rounds 10

All variants stand side by side in one process and take turns. A round's ratio is of a variant's step to the plain one
in the same round; shown are the median and the quartiles over rounds. Time is the process's own on the CPU, with one
thread, so that other work on the machine counts for nobody. The callback is measured in a real Trainer against the
same Trainer without it; its mechanism, and the peers, in a plain loop. Peers: torchao's PT2E and torch.ao's FX flow
(both 8 bits), brevitas (weights 4 bits, inputs 8). The extra ``peers`` installs them; what is missing is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import FocusedCompression
from lightning_effnn.compression import Projector, measure_compressed
from lightning_effnn.compression.stages import FRACTIONS, PRUNING_STEPS
from lightning_effnn.modules import ImageClassifier, ResNetCIFAR
from lightning_effnn.recipes.benchmarks import _peers

Row = dict[str, Any]
Batch = tuple[Tensor, Tensor]
Step = Callable[[], None]

SPARSITY = 0.75
PHASES = ("pruning", "half rounded", "all rounded")
PLAIN, TRAINER = "plain step", "Trainer"
WARM_UP = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table a batch size, and one of what is done a few times a fit; keep the figures in ``--out``."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/compression_step_cost", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 128], help="images a batch")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--depth", type=int, default=20, help="of the ResNet")
    parser.add_argument("--out", type=Path, default=Path("runs/compression_step_cost.json"))
    args = parser.parse_args(argv)
    if args.rounds < 2 or min(args.sizes) < 2:
        print(f"error: --rounds and --sizes must be at least 2, got {args.rounds}, {args.sizes}", file=sys.stderr)
        return 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        nets = _peer_nets(args.depth)
        result: dict[str, Any] = {"depth": args.depth, "steps": [], "events": []}
        for size in args.sizes:
            result["steps"] += _measure(size, args.rounds, args.depth, nets)
            result["events"] += _events(size, args.depth, result["steps"])
            write_text(args.out, json.dumps(result, indent=1) + "\n")
    finally:
        torch.set_num_threads(threads)
    for table in (_steps_table(result["steps"]), _events_table(result["events"])):
        Console().print(table)
    return 0


def _peer_nets(depth: int) -> dict[str, nn.Module]:
    images = _batch(2)[0]
    builders: dict[str, tuple[str, Callable[[], nn.Module]]] = {
        "torchao QAT, PT2E, 8 bits": ("torchao", lambda: _peers.torchao_training(_net(depth), images)),
        "torch.ao QAT, FX, 8 bits": ("torch", lambda: _peers.fx_training(_net(depth), images)),
        "brevitas QAT, 4 bits": ("brevitas", lambda: _peers.brevitas_training(_net(depth), 4, collect_steps=WARM_UP)),
    }
    nets = {}
    for name, (library, build) in builders.items():
        if reason := _peers.missing(library):
            print(f"{name}: left out: {reason}", flush=True)
        else:
            nets[name] = build()
    return nets


def _measure(size: int, rounds: int, depth: int, nets: dict[str, nn.Module]) -> list[Row]:
    """Times of all variants in turn, ``rounds`` times."""
    batch = _batch(size)
    variants = {PLAIN: _plain_step(_net(depth), batch)}
    variants |= {phase: _projected_step(_net(depth), batch, phase) for phase in PHASES}
    variants |= {name: _plain_step(net, batch) for name, net in nets.items()}
    with _peers.quiet():
        fits = {TRAINER: _Fit(depth, batch, None)}
        fits |= {f"{TRAINER}, {phase}": _Fit(depth, batch, phase) for phase in PHASES}
    try:
        turns: dict[str, Step] = {**variants, **{name: fit.step for name, fit in fits.items()}}
        for step in turns.values():
            for _ in range(WARM_UP + 1):
                step()
        times: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(rounds):
            for name in list(turns) if number % 2 else reversed(turns):
                start = time.process_time()
                turns[name]()
                times[name].append(time.process_time() - start)
            print(f"batch {size}: round {number + 1} of {rounds}", end="\r", flush=True)
    finally:
        with _peers.quiet():
            for fit in fits.values():
                fit.stop()
    return [_row(size, name, times[name], times[TRAINER if name in fits else PLAIN]) for name in turns]


def _row(size: int, name: str, times: Sequence[float], plain: Sequence[float]) -> Row:
    ratios = [a / b for a, b in zip(times, plain, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "batch": size, "variant": name, "ms": 1e3 * statistics.median(times), "ratio": middle, "low": low, "high": high,
        "rounds": len(times),
    }  # fmt: skip


def _events(size: int, depth: int, steps: Sequence[Row]) -> list[Row]:
    """What is done at some steps only: how often a fit, and how long it takes in plain steps."""
    plain = next(row["ms"] for row in steps if row["batch"] == size and row["variant"] == PLAIN)
    net = _net(depth)
    projector = Projector(net)
    rows = []
    for name, times, do in (
        ("masks chosen anew", PRUNING_STEPS, lambda: projector.prune(SPARSITY)),
        ("formats fitted", len(FRACTIONS), lambda: projector.quantize(1.0)),
        ("figures logged, once an epoch", 1, lambda: measure_compressed(net)),
    ):
        taken = []
        for _ in range(3):
            start = time.process_time()
            do()
            taken.append(1e3 * (time.process_time() - start))
        ms = statistics.median(taken)
        rows.append({"batch": size, "event": name, "times": times, "ms": ms, "plain steps": times * ms / plain})
    return rows


def _net(depth: int) -> nn.Module:
    torch.manual_seed(0)
    return ResNetCIFAR(depth=depth).train()


def _batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 3, 32, 32, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


def _backward(net: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(F.cross_entropy(net(batch[0]), batch[1]))


def _plain_step(net: nn.Module, batch: Batch) -> Step:
    net.train()
    optimizer = _optimizer(net)

    def step() -> None:
        _backward(net, batch, optimizer)
        optimizer.step()

    return step


def _projected_step(net: nn.Module, batch: Batch, phase: str) -> Step:
    optimizer, projector = _optimizer(net), _in_phase(net, phase)

    def step() -> None:
        _backward(net, batch, optimizer)
        projector.restore(lr=optimizer.param_groups[0]["lr"])
        optimizer.step()
        projector.capture()

    return step


def _in_phase(net: nn.Module, phase: str) -> Projector:
    projector = Projector(net)
    projector.prune(SPARSITY)  # surgery now goes on at each step
    if phase != "pruning":
        projector.settle()
        projector.quantize(0.5 if phase == "half rounded" else 1.0)
    return projector


class _Endless:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


class _Stopped(Exception):
    pass


class _Fit(L.Callback):
    """A fit in a thread of its own, that goes on by one step when it is told to."""

    def __init__(self, depth: int, batch: Batch, phase: str | None) -> None:
        self._go, self._ready = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._over = False
        self.module = ImageClassifier(_net(depth), optimizer="sgd", lr=0.01, weight_decay=0.0, schedule="constant")
        callbacks: list[L.Callback] = [self]
        if phase is not None:
            callbacks.append(_callback_in(phase, ImageClassifier(_net(depth))))
        trainer = L.Trainer(
            max_epochs=1, callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", limit_val_batches=0,
        )  # fmt: skip
        self.thread = threading.Thread(target=self._run, args=(trainer, _Endless(batch)), daemon=True)
        self.thread.start()
        self._wait()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        """Wait for the next turn."""
        self._ready.release()
        self._go.acquire()
        if self._over:
            raise _Stopped

    def step(self) -> None:
        """From the start of a batch to that of the next."""
        self._go.release()
        self._wait()

    def stop(self) -> None:
        """End the fit where it is."""
        self._over = True
        self._go.release()
        self.thread.join()

    def _wait(self) -> None:
        self._ready.acquire()
        if self._error is not None:
            raise self._error

    def _run(self, trainer: L.Trainer, loader: _Endless) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.fit(self.module, loader)
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
            self._ready.release()


def _callback_in(phase: str, module: nn.Module) -> FocusedCompression:
    """The callback as it stands in that phase, with nothing left to be scheduled."""
    callback = FocusedCompression(SPARSITY, prune=(0.0, 0.5), quantize=None if phase == "pruning" else (0.5, 1.0))
    state = _in_phase(module, phase).state_dict()
    done = {"projector": state, "pruned": PRUNING_STEPS, "rounded": len(FRACTIONS) - 1}
    callback.load_state_dict(callback.state_dict() | done)
    return callback


def _steps_table(rows: Sequence[Row]) -> Table:
    table = Table(title="a training step, CPU, one thread; ratio to the plain one", title_justify="left")
    for heading in ("batch", "variant", "ms", "ratio", "quartiles"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]), row["variant"], f"{row['ms']:.1f}", f"{row['ratio']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
        )  # fmt: skip
    return table


def _events_table(rows: Sequence[Row]) -> Table:
    table = Table(title="what is done at some steps of a fit only", title_justify="left")
    for heading in ("batch", "event", "times", "ms each", "plain steps, together"):
        table.add_column(heading, justify="left" if heading == "event" else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]), row["event"], str(row["times"]), f"{row['ms']:.1f}", f"{row['plain steps']:.1f}"
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
