"""One, two and four gloo processes at the same global batch: what differs, and what each callback sends a step.

effnn run benchmarks/scale_out                   # worlds of 1, 2 and 4 processes on this machine
effnn run benchmarks/scale_out --worlds 1,2

For each callback: the largest difference of a weight from the one-process fit, whether masks and codes, or bits, are
the same there and on all processes, and the calls and bytes of collective operations beside those of plain DDP.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import (
    EnergyGuardProfile,
    FocusedCompression,
    HardwareEnergyMonitor,
    LowPrecisionSearch,
    PDEResidualLoss,
    SpongeEvaluation,
    SpongeTraining,
)
from lightning_effnn.recipes.benchmarks._every_callback import plane

EPOCHS, BATCHES, BATCH = 4, 12, 16
CALLS = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "broadcast_object_list", "barrier")

SCENARIOS: dict[str, Callable[[], Any]] = {
    "plain": lambda: None,
    "HardwareEnergyMonitor": lambda: HardwareEnergyMonitor("tpu_like"),
    "FocusedCompression": lambda: FocusedCompression(0.6, prune=(0.0, 0.4), quantize=(0.4, 0.7)),
    "FocusedCompression, activations": lambda: FocusedCompression(
        0.6, prune=(0.0, 0.4), quantize=(0.4, 0.7), activations=8
    ),
    "LowPrecisionSearch, weights": lambda: LowPrecisionSearch((2, 8), (), "bits", warmup=0.0, freeze=0.6),
    "LowPrecisionSearch": lambda: LowPrecisionSearch((2, 8), (4, 8), "bits", warmup=0.0, freeze=0.6),
    "SpongeTraining": lambda: SpongeTraining(attack="pgd", steps=2, share=1.0),
    "SpongeEvaluation": lambda: SpongeEvaluation(2, attacks=("random",), limit=2),
    "EnergyGuardProfile": lambda: EnergyGuardProfile(quantile=0.8, confidence=0.5),
    "PDEResidualLoss": lambda: PDEResidualLoss(plane(64), "layers.5", points=8, boundary_points=8),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each callback and number of processes; 0 if masks, codes and bits agree everywhere."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/scale_out", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--worlds", default="1,2,4", help="numbers of processes, 1 first (default: 1,2,4)")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    worlds = [int(world) for world in args.worlds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for world in worlds:
            _launch(world, Path(folder))
        found = {world: [torch.load(Path(folder) / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
                 for world in worlds}  # fmt: skip
    rows = [_row(name, world, found) for name in SCENARIOS for world in worlds if world > 1]
    Console(width=140).print(_table(rows))
    if args.out:
        text = json.dumps({"batches": BATCHES * EPOCHS, "global batch": BATCH, "rows": rows}, indent=1) + "\n"
        write_text(args.out, text)
    return 0 if all(row["same on all processes"] for row in rows) else 1


def _row(name: str, world: int, found: dict[int, list[Any]]) -> dict[str, Any]:
    one, many = found[1][0][name], [rank[name] for rank in found[world]]
    weights, choices = one["weights"], one["choices"]
    own, plain = many[0]["sent"], found[world][0]["plain"]["sent"]
    steps = EPOCHS * BATCHES
    return {
        "callback": name,
        "processes": world,
        "largest difference": max(float((weights[k] - many[0]["weights"][k]).abs().max()) for k in weights),
        "choices as in one process": _equal(choices, many[0]["choices"]),
        "same on all processes": all(
            _equal(many[0]["choices"], rank["choices"]) and _equal(many[0]["weights"], rank["weights"]) for rank in many
        ),
        "gradient bytes a step": sum(4 * x.numel() for x in weights.values()),
        "calls a step": (own["calls"] - plain["calls"]) / steps,
        "bytes a step": (own["bytes"] - plain["bytes"]) / steps,
    }


def _equal(one: Any, other: Any) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def _launch(world: int, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    command += ["-m", "lightning_effnn.recipes.benchmarks.scale_out", "--worker"]
    environment = os.environ | {"EFFNN_SCALE_OUT": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    missing = [rank for rank in range(world) if not (folder / f"{world}-{rank}.pt").exists()]
    if missing:  # gloo may abort a process that is done
        raise RuntimeError(f"processes {missing} of {world} wrote nothing:\n{done.stdout[-3000:]}")


def _worker(folder: Path) -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    sent = _counted()
    results = {}
    for name, make in SCENARIOS.items():
        sent.update(calls=0, bytes=0)
        callback = make()
        model = _fitted(callback, world)
        weights = {key: x.detach().clone() for key, x in model.state_dict().items()}
        results[name] = {"weights": weights, "choices": _choices(callback), "sent": dict(sent)}
    torch.save(results, folder / f"{world}-{rank}.pt")
    torch.distributed.barrier()


def _fitted(callback: Any, world: int) -> L.LightningModule:
    L.seed_everything(0, verbose=False)
    model = _Network()
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=[callback] if callback else [],
        accelerator="cpu",
        devices=world,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, _loader(BATCHES, BATCH // world), _loader(2, BATCH // world))
    return model


def _choices(callback: Any) -> dict[str, torch.Tensor]:
    """Masks and codes, or bits, or limits."""
    if isinstance(callback, FocusedCompression):
        assert callback.projector is not None
        masks = {layer.site.name: layer.mask for layer in callback.projector.layers}
        codes = {f"{layer.site.name} code": torch.unique(layer.site.parameter.detach(), return_inverse=True)[1]
                 for layer in callback.projector.layers}  # fmt: skip
        return {name: x.clone() for name, x in (masks | codes).items()}
    if isinstance(callback, LowPrecisionSearch):
        assert callback.plan is not None
        bits = {**callback.plan.weights, **callback.plan.activations}
        return {name: torch.tensor(int(n)) for name, n in bits.items()}
    if isinstance(callback, EnergyGuardProfile):
        return {name: torch.tensor(limit, dtype=torch.float32) for name, limit in callback.state_dict().items()}
    return {}


class _Network(L.LightningModule):
    """Without batch norm, whose statistics are of each process's own batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def _loader(batches: int, batch: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batches * BATCH, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch)


def _counted() -> dict[str, int]:
    """Count what Python code sends from now on; DDP's gradients, which C++ sends, are known: four bytes a weight."""
    sent = {"calls": 0, "bytes": 0}

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            sent["calls"] += 1
            sent["bytes"] += sum(x.numel() * x.element_size() for x in args if isinstance(x, torch.Tensor))
            return call(*args, **kwargs)

        return counted

    for name in CALLS:
        setattr(torch.distributed, name, counting(getattr(torch.distributed, name)))
    inner = torch.distributed.distributed_c10d  # objects are sent as tensors, by its own functions
    inner.broadcast, inner.all_gather = counting(inner.broadcast), counting(inner.all_gather)
    return sent


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as the card shows it."""
    lines = [
        "| callback | processes | largest difference of a weight | masks, codes, bits as in one process |"
        " calls a step | bytes a step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        same = "yes" if row["choices as in one process"] else "no"
        lines.append(
            f"| {row['callback']} | {row['processes']} | {row['largest difference']:.1g} | {same} |"
            f" {row['calls a step']:.2f} | {row['bytes a step']:,.0f} |"
        )
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Processes at one global batch", title_justify="left")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        table.add_row(*shown)
    return table


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        _worker(Path(os.environ["EFFNN_SCALE_OUT"]))
        sys.stdout.flush()
        os._exit(0)  # gloo may abort a process that is done
    raise SystemExit(main())
