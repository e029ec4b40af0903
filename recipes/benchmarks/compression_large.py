"""What compression costs in the training of large networks: a step in each phase, and choosing masks anew.

    effnn run benchmarks/compression_large      # ResNet-50, 8 images of 64 pixels; BERT-base, 4 x 64 tokens
    effnn run benchmarks/compression_large --only bert --rounds 6

The networks have the shapes of the published ones and random weights; the optimiser is SGD with momentum. A compressed
and a plain network take turns, and a round's ratio is of two neighbouring steps; shown are medians and quartiles. Time
is the process's own, on one thread. Memory is what the process has resident at most while masks are chosen, over what
it had before, against the size of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_effnn._files import write_text
from lightning_effnn.compression import Projector
from lightning_effnn.recipes.benchmarks.compression_step_cost import PHASES, SPARSITY, _plain_step, _projected_step

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of steps and one of choosing masks; keep the figures in ``--out``."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/compression_large", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", choices=list(NETWORKS), help="one network")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/compression_large.json"))
    args = parser.parse_args(argv)
    if args.rounds < 2:
        print(f"error: --rounds must be at least 2, got {args.rounds}", file=sys.stderr)
        return 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result: dict[str, list[Row]] = {"steps": [], "masks": []}
    try:
        for name in [args.only] if args.only else NETWORKS:
            result["steps"] += [_step(name, phase, args.rounds) for phase in PHASES]
            plain = statistics.median(row["ms"] for row in result["steps"] if row["network"] == name)
            result["masks"].append(_masks(name, plain))
            write_text(args.out, json.dumps(result, indent=1) + "\n")
    finally:
        torch.set_num_threads(threads)
    for rows in result.values():
        Console().print(_table(rows))
    return 0


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, width, 1), nn.ReLU(), *_convolution(width, width, 3, stride), nn.ReLU(),
            *_convolution(width, 4 * width, 1),
        )  # fmt: skip
        same = stride == 1 and channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, 4 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to four times ``width`` channels."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)


def resnet50() -> nn.Module:
    """25.6 million weights (He et al., arXiv 1512.03385)."""
    blocks: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(Bottleneck(channels, width, stride if index == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Encoder(nn.Module):
    """109 million weights: embeddings, twelve layers of 768 features (Devlin et al., arXiv 1810.04805)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(30522, 768), nn.Embedding(512, 768)
        layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
        self.layers, self.classifier = nn.TransformerEncoder(layer, 12), nn.Linear(768, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[batch, length]`` to classes."""
        places = torch.arange(x.shape[1], device=x.device)
        scores: Tensor = self.classifier(self.layers(self.tokens(x) + self.places(places))[:, 0])
        return scores


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet50": (resnet50, lambda: torch.rand(8, 3, 64, 64)),
    "bert": (Encoder, lambda: torch.randint(0, 30522, (4, 64))),
}


def _network(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    build, batch = NETWORKS[name]
    inputs = batch()
    return build().train(), (inputs, torch.randint(0, 2, (len(inputs),)))


def _step(name: str, phase: str, rounds: int) -> Row:
    """Times of a plain step and one in a phase, in turn."""
    turns = [_plain_step(*_network(name)), _projected_step(*_network(name), phase)]
    for step in turns:
        step()
        step()
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            turns[which]()
            times[which].append(time.process_time() - start)
        print(f"{name}, {phase}: round {number + 1} of {rounds}", end="\r", flush=True)
    ratios = [ours / plain for plain, ours in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "network": name, "phase": phase, "ms": 1e3 * statistics.median(times[0]), "ratio": middle, "low": low,
        "high": high, "rounds": rounds,
    }  # fmt: skip


def _masks(name: str, plain: float) -> Row:
    """Choose masks: time in plain steps, and memory."""
    net, _ = _network(name)
    projector = Projector(net)
    projector.prune(0.5 * SPARSITY)
    taken, extra = [], 0.0
    for _ in range(3):
        with _Resident() as resident:
            start = time.process_time()
            projector.prune(SPARSITY)
            taken.append(1e3 * (time.process_time() - start))
        extra = max(extra, resident.grown)
    size = sum(layer.latent.numel() * layer.latent.element_size() for layer in projector.layers)
    ms = statistics.median(taken)
    return {
        "network": name, "ms": ms, "plain steps": ms / plain, "extra MB": extra / 1e6, "of the weights": extra / size,
        "zeros": projector.sparsity, "asked": SPARSITY,
    }  # fmt: skip


class _Resident:
    """How much more memory the process has resident at most, in bytes (Linux)."""

    def __enter__(self) -> _Resident:
        self.grown, self._over, self._start = 0.0, False, self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    def _watch(self) -> None:
        while not self._over:
            self.grown = max(self.grown, self._now() - self._start)
            time.sleep(0.001)

    @staticmethod
    def _now() -> float:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _table(rows: Sequence[Row]) -> Table:
    table = Table()
    for heading in rows[0]:
        table.add_column(heading, justify="right" if isinstance(rows[0][heading], float | int) else "left")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
