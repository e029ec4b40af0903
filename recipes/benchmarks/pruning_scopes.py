"""What a threshold compares, and what that costs in accuracy: FocusedCompression with each scope, on small networks.

    effnn run benchmarks/pruning_scopes                 # a transformer with an embedding, a CNN, an MLP; three seeds
    effnn run benchmarks/pruning_scopes --seeds 1 --only text

"global, no floor" is one threshold for all weights, as it is when no layer keeps a part of the average density.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import FocusedCompression
from lightning_effnn.compression import pruning

Task = tuple[Callable[[], nn.Module], Callable[[], tuple[TensorDataset, TensorDataset]], float, int]

FLOORS: dict[str, tuple[str, float] | None] = {
    "dense": None,
    "global, no floor": ("global", 0.0),
    "global, 1/4": ("global", 1 / 4),
    "global, 1/3": ("global", 1 / 3),
    "global, 1/2": ("global", 1 / 2),
    "lamp": ("lamp", 0.0),
    "layer": ("layer", 0.0),
}
EPOCHS = 10


class Words(nn.Module):
    """A small transformer over an embedding, whose weights are ten times those of the other layers at first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.layers, self.classifier = nn.TransformerEncoder(layer, 2), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Words ``[batch, length]`` to classes."""
        scores: Tensor = self.classifier(self.layers(self.embedding(x)).mean(1))
        return scores


def _words() -> tuple[TensorDataset, TensorDataset]:
    def drawn(n: int, seed: int) -> TensorDataset:
        x = torch.randint(0, 200, (n, 16), generator=torch.Generator().manual_seed(seed))
        return TensorDataset(x, ((x < 100).sum(1) > 8).long())

    return drawn(2048, 0), drawn(512, 1)


def _digits() -> tuple[TensorDataset, TensorDataset]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(3))
    x = (torch.tensor(data.images).float()[:, None] / 16)[order]
    y = torch.tensor(data.target)[order]
    return TensorDataset(x[:1400], y[:1400]), TensorDataset(x[1400:], y[1400:])


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def _rows() -> tuple[TensorDataset, TensorDataset]:
    rule = torch.randn(16, 4, generator=torch.Generator().manual_seed(9))

    def drawn(seed: int) -> TensorDataset:
        x = torch.randn(2048, 16, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(x, (torch.tanh(x) @ rule).argmax(1))

    return drawn(0), drawn(1)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


TASKS: dict[str, Task] = {
    "text": (Words, _words, 2e-3, 64),
    "cnn": (_cnn, _digits, 2e-3, 32),
    "mlp": (_mlp, _rows, 3e-3, 32),
}
SPARSITIES = {"text": (0.8, 0.9), "cnn": (0.8, 0.95), "mlp": (0.9,)}


class _Classifier(L.LightningModule):
    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracies on what was not trained on; keep them in ``--out``."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/pruning_scopes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", choices=list(TASKS), help="one task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning_scopes.json"))
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for task in [args.only] if args.only else TASKS:
        for sparsity in SPARSITIES[task]:
            for name, floor in FLOORS.items():
                found = [_accuracy(TASKS[task], sparsity, floor, seed) for seed in range(args.seeds)]
                rows.append({"task": task, "zeros": sparsity, "threshold": name, "accuracy": found})
                print(f"{task}, {sparsity}: {name}: {' '.join(f'{value:.3f}' for value in found)}", flush=True)
                write_text(args.out, json.dumps(rows, indent=1) + "\n")
    table = Table()
    for heading in ("task", "zeros", "threshold", "accuracy, mean"):
        table.add_column(heading)
    for row in rows:
        mean = sum(row["accuracy"]) / len(row["accuracy"])
        table.add_row(row["task"], f"{row['zeros']:.0%}", row["threshold"], f"{mean:.1%}")
    Console().print(table)
    return 0


def _accuracy(task: Task, sparsity: float, floor: tuple[Any, float] | None, seed: int) -> float:
    build, data, lr, size = task
    train, held_out = data()
    torch.manual_seed(seed)
    model, kept = _Classifier(build(), lr), pruning.FLOOR
    callbacks: list[L.Callback] = [] if floor is None else [FocusedCompression(sparsity, scope=floor[0])]
    pruning.FLOOR = kept if floor is None else floor[1]
    try:
        L.Trainer(
            max_epochs=EPOCHS, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(model, DataLoader(train, size, shuffle=True))  # fmt: skip
    finally:
        pruning.FLOOR = kept
    x, y = held_out.tensors
    with torch.no_grad():
        return float((model.eval().net(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    raise SystemExit(main())
