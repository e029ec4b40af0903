"""What SpongeTraining adds to training, and what it buys, by the share of each batch that is attacked.

    effnn run benchmarks/sponge_cost --seeds 3
    effnn run benchmarks/sponge_cost --seeds 0        # the cost of a step of ResNet-20 alone

The digits CNN of the recipe sponge/digits is trained with several shares and attacked: the worst mean energy of an
input. Beside it, the time of a fit over that of a plain one, and of a step of ResNet-20 on batches of 128 over that of
a plain step in the same round (median of rounds, the inner attack with 3 steps). Time is the process's own on the CPU,
with one thread. Results are kept in ``--out`` as they come; fits that are there aren't run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from lightning_effnn._files import write_text
from lightning_effnn.modules import ResNetCIFAR
from lightning_effnn.recipes.sponge._comparison import measured
from lightning_effnn.recipes.sponge.digits import STUDY
from lightning_effnn.robustness import SpongePenalty

Row = dict[str, Any]
_STEPS = 2
"""A round's steps of each variant: both inner attacks have their turn."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/sponge_cost", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0625, 0.125, 0.25, 0.5])
    parser.add_argument("--weight", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=STUDY.epochs)
    parser.add_argument("--inputs", type=int, default=STUDY.inputs, help="test images that are attacked")
    parser.add_argument("--attack-steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7, help="of ResNet-20 steps")
    parser.add_argument("--batch", type=int, default=128, help="of ResNet-20 steps")
    parser.add_argument("--out", type=Path, default=Path("runs/sponge_cost/results.json"))
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: Row = json.loads(args.out.read_text()) if args.out.exists() else {"fits": []}
    try:
        for seed in range(args.seeds):
            for share in (0.0, *args.shares):
                key = {"seed": seed, "defence": "sponge training" if share else "none", "weight": args.weight,
                       "epochs": args.epochs, "limit": None, "eps": STUDY.eps, "share": share, "inputs": args.inputs,
                       "steps": args.attack_steps, "precision": "32-true", "accelerator": "eyeriss_like"}  # fmt: skip
                if any(all(row[name] == value for name, value in key.items()) for row in found["fits"]):
                    continue
                found["fits"].append(key | measured(STUDY, key))
                _write(found, args.out)
        found["steps"] = _step_ratios(args.shares, args.rounds, args.batch)
        _write(found, args.out)
    finally:
        torch.set_num_threads(threads)
    Console(width=120).print(_table(found))
    return 0


def _write(found: Row, path: Path) -> None:
    write_text(path, json.dumps(found, indent=1) + "\n")


def _step_ratios(shares: Sequence[float], rounds: int, batch: int) -> dict[str, float]:
    """Time of a training step with the penalty over that without, by share."""
    torch.manual_seed(0)
    net = ResNetCIFAR(depth=20)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    x, labels = torch.rand(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    penalties = {share: SpongePenalty(net, ("pgd", "unbounded"), steps=3, share=share) for share in shares}

    def spent(penalty: SpongePenalty | None) -> float:
        begin = time.process_time()
        for number in range(_STEPS):
            loss = F.cross_entropy(net(x), labels)
            if penalty is not None:
                loss = loss + penalty(x, number)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return time.process_time() - begin

    spent(penalties[shares[-1]])
    ratios: dict[float, list[float]] = {share: [] for share in shares}
    for _ in range(rounds):
        plain = spent(None)
        for share, penalty in penalties.items():
            ratios[share].append(spent(penalty) / plain)
    return {f"{share:g}": statistics.median(values) for share, values in ratios.items()}


def _table(found: Row) -> Table:
    table = Table(title="sponge training by the share of each batch that is attacked", title_justify="left")
    for heading in ("share", "seeds", "accuracy", "natural uJ", "worst uJ", "gain", "digits, time", "ResNet-20 step"):
        table.add_column(heading, justify="right")
    groups: dict[float, list[Row]] = {float(share): [] for share in found["steps"]}
    for row in found["fits"]:
        groups.setdefault(row["share"], []).append(row)
    plain = {row["seed"]: row["fit_cpu_s"] for row in groups.get(0.0, [])}
    for share, rows in sorted(groups.items()):
        step = found["steps"].get(f"{share:g}")
        cells = ["-"] * 5
        if rows:
            means = {
                name: statistics.mean(row[name] for row in rows) for name in ("accuracy", "natural_uJ", "worst_uJ")
            }
            ratio = statistics.median(row["fit_cpu_s"] / plain[row["seed"]] for row in rows)
            gain = statistics.mean(row["gain"] for row in rows)
            cells = [f"{means['accuracy']:.1%}", f"{means['natural_uJ']:.2f}", f"{means['worst_uJ']:.2f}",
                     f"{gain:.3f}", f"{ratio:.2f}x"]  # fmt: skip
        table.add_row(f"{share:g}", str(len(rows)), *cells, "-" if step is None else f"{step:.2f}x")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
