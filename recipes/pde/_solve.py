"""What all recipes of equations share: arguments, the fit, a table, a picture."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_text
from lightning_effnn.modules import PDESolver
from lightning_effnn.pde import Problem
from lightning_effnn.pde.field import Field

Row = dict[str, Any]


def solve(name: str, doc: str | None, problem: Callable[[], Problem], argv: Sequence[str] | None) -> int:
    """Solve a problem for each seed, print errors and times, draw the last solution.

    Args:
        name: of the recipe, ``"poisson"``.
        doc: its docstring.
        problem: makes it.
        argv: arguments of the command line.
    """
    parser = argparse.ArgumentParser(prog=f"effnn run pde/{name}", description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=100, help="at most; it ends when nothing more is gained")
    parser.add_argument("--optimizer", default="lm", choices=["lm", "adam", "lbfgs", "adam+lbfgs"])
    parser.add_argument("--plain", action="store_true", help="plain coordinates, no encoding")
    parser.add_argument("--hidden", type=int, nargs="+", default=[20, 20], help="widths of the hidden layers")
    parser.add_argument("--points", type=int, default=2048, help="inside the domain")
    parser.add_argument("--out", type=Path, default=Path(f"runs/pde_{name}"), help="folder of results")
    parser.add_argument("--accelerator", default="cpu", help="where to train, as the Trainer names it")
    args = parser.parse_args(argv)
    rows: list[Row] = []
    for seed in range(args.seeds):
        solver = PDESolver(
            problem(), Field("none" if args.plain else None, args.hidden), args.optimizer, points=args.points, seed=seed
        )
        trainer = L.Trainer(
            max_epochs=args.epochs, accelerator=args.accelerator, devices=1, enable_checkpointing=False,
            logger=CSVLogger(args.out, name="", version=f"seed_{seed}"), log_every_n_steps=1,
            enable_model_summary=False,
        )  # fmt: skip
        start = time.perf_counter()
        trainer.fit(solver)
        rows.append({"seed": seed, "seconds": time.perf_counter() - start, "epochs": trainer.current_epoch,
                     "rel_l2": solver.rel_l2(), "unknowns": solver.unknowns.values()})  # fmt: skip
        solver.save(args.out / f"seed_{seed}.safetensors")
    write_text(args.out / "results.json", json.dumps(rows, indent=1) + "\n")
    Console().print(_table(rows))
    try:
        solver.plot(args.out / "solution.png")
    except ImportError as error:
        print(f"no figure: {error}")
    else:
        print(f"figure: {args.out / 'solution.png'}")
    return 0


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="relative L2 error against the reference", title_justify="left")
    for heading in ("seed", *rows[0]["rel_l2"], *rows[0]["unknowns"], "epochs", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(str(row["seed"]), *(f"{e:.1e}" for e in row["rel_l2"].values()),
                      *(f"{v:.6g}" for v in row["unknowns"].values()), str(row["epochs"]),
                      f"{row['seconds']:.1f}")  # fmt: skip
    return table
