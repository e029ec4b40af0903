"""Twenty-four equations of many kinds, each by the solver's defaults: error against the known solution, and seconds.

    effnn run benchmarks/pde_defaults
    effnn run benchmarks/pde_defaults --only oscillator --only plate

Seconds are those of one core. Results are kept in ``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_text
from lightning_effnn.modules import PDESolver
from lightning_effnn.recipes.benchmarks._pde_zoo import ZOO


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/pde_defaults", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", action="append", choices=sorted(ZOO), help="repeatable")
    parser.add_argument("--epochs", type=int, default=100, help="at most")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/pde_defaults.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in range(args.seeds):
        for name in args.only or ZOO:
            key = {"problem": name, "seed": seed, "epochs": args.epochs}
            if any(all(row[k] == value for k, value in key.items()) for row in rows):
                continue
            rows.append(key | _solved(key))
            text = json.dumps(rows, indent=1) + "\n"
            write_text(args.out, text)
            print(f"{name}, seed {seed}: {rows[-1]['rel_l2']:.1e} in {rows[-1]['seconds']:.0f} s", flush=True)
    table = Table(title="defaults on equations they were not chosen on", title_justify="left")
    for heading in ("problem", "seed", "relative L2 error", "epochs", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["problem"], str(row["seed"]), f"{row['rel_l2']:.1e}", str(row["ran"]), f"{row['seconds']:.0f}"
        )
    Console().print(table)
    return 0


def _solved(key: dict[str, Any]) -> dict[str, Any]:
    start = time.process_time()
    solver = PDESolver(ZOO[key["problem"]](), seed=key["seed"])
    trainer = L.Trainer(
        max_epochs=key["epochs"], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(solver)
    return {
        "rel_l2": max(solver.rel_l2().values()),
        "ran": trainer.current_epoch,
        "seconds": time.process_time() - start,
    }


if __name__ == "__main__":
    raise SystemExit(main())
