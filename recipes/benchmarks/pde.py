"""Errors over seconds of one core: our solver, DeepXDE, and what encoding, optimizer and points each bring.

    effnn run benchmarks/pde --peers deepxde --seeds 3
    effnn run benchmarks/pde --problems burgers helmholtz --variants ours plain adam

Each run is a process of its own on one thread; seconds are those of its processor, so that a busy machine doesn't
count. Results are kept in ``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_figure, write_text

PROBLEMS = ("burgers", "helmholtz", "helmholtz_waves", "poisson", "heat", "allen_cahn", "kovasznay", "poisson_lshape",
            "helmholtz_3d")  # fmt: skip
VARIANTS = ("ours", "plain", "adam", "uniform")
"""With its defaults; without the encoding; with Adam; without points where the residual is large."""
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table, draw the curves."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/pde", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["ours"])
    parser.add_argument("--peers", nargs="*", choices=("deepxde",), default=[])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40.0, help="of one core, for each of our runs")
    parser.add_argument("--peer-seconds", type=float, default=150.0)
    parser.add_argument("--out", type=Path, default=Path("runs/pde.json"))
    parser.add_argument("--plot", type=Path, default=Path("runs/pde.png"))
    args = parser.parse_args(argv)
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in range(args.seeds):
        for problem in args.problems:
            for variant in (*args.variants, *args.peers):
                seconds = args.peer_seconds if variant in args.peers else args.seconds
                key = {"problem": problem, "variant": variant, "seed": seed, "seconds": seconds}
                if any(all(row[name] == value for name, value in key.items()) for row in rows):
                    continue
                curve = _run(key)
                if curve is None:
                    return 1
                rows.append(key | {"curve": curve})
                text = json.dumps(rows) + "\n"
                write_text(args.out, text)
                best = min(error for _, error in curve)
                print(f"{problem} {variant} seed {seed}: best {best:.1e} within {curve[-1][0]:.0f} s", flush=True)
    Console().print(_table(rows))
    try:
        _plot(rows, args.plot)
    except ImportError as error:
        print(f"no figure: {error}")
    else:
        print(f"figure: {args.plot}")
    return 0


def _run(key: Row) -> list[tuple[float, float]] | None:
    module = "lightning_effnn.recipes.benchmarks._pde_runs"
    arguments = [str(key[name]) for name in ("problem", "variant", "seed", "seconds")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", module, *arguments], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        print(f"error: {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    curve: list[tuple[float, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return curve


def reached(curve: Sequence[Sequence[float]], error: float) -> float | None:
    """Return after how many seconds an error was first as low.

    >>> reached([(1.0, 0.5), (2.0, 0.1)], 0.2)
    2.0
    """
    return next((seconds for seconds, found in curve if found <= error), None)


def _best(row: Row) -> tuple[float, float]:
    """Return the lowest error of a run and when it was first there."""
    error, seconds = min((error, seconds) for seconds, error in row["curve"])
    return error, seconds


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f}" if len(known) > len(values) / 2 else "never"


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="medians over seeds; seconds of one core", title_justify="left")
    for heading in (
        "problem",
        "variant",
        "seeds",
        "to 1e-1",
        "to 1e-2",
        "to 1e-3",
        "best",
        "at",
        "peer's best, faster",
    ):
        table.add_column(heading, justify="right")
    for problem in dict.fromkeys(row["problem"] for row in rows):
        for variant in dict.fromkeys(row["variant"] for row in rows if row["problem"] == problem):
            mine = [row for row in rows if (row["problem"], row["variant"]) == (problem, variant)]
            peers = {row["seed"]: row for row in rows if (row["problem"], row["variant"]) == (problem, "deepxde")}
            bests = [_best(row) for row in mine]
            table.add_row(
                problem, variant, str(len(mine)),
                *(_median([reached(row["curve"], e) for row in mine]) for e in (1e-1, 1e-2, 1e-3)),
                f"{statistics.median(e for e, _ in bests):.1e}", f"{statistics.median(s for _, s in bests):.1f}",
                _ratio(mine, peers) if variant != "deepxde" else "",
            )  # fmt: skip
    return table


def _ratio(mine: Sequence[Row], peers: dict[int, Row]) -> str:
    """Return how many times sooner than the peer of the same seed its own best error is there."""
    ratios: list[float | None] = []
    for row in mine:
        if row["seed"] in peers:
            error, seconds = _best(peers[row["seed"]])
            ours = reached(row["curve"], error)
            ratios.append(None if ours is None else seconds / ours)
    return f"{_median(ratios)}x" if ratios else ""


def _plot(rows: Sequence[Row], path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'lightning_effnn[plots]'") from error
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    columns = min(3, len(problems))
    lines = -(-len(problems) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {"ours": "C0", "plain": "C2", "adam": "C1", "uniform": "C4", "deepxde": "C3"}
    for k, problem in enumerate(problems):
        plot = figure.add_subplot(lines, columns, k + 1)
        seen: set[str] = set()
        for row in rows:
            if row["problem"] != problem:
                continue
            seconds, errors = zip(*row["curve"], strict=True)
            label = None if row["variant"] in seen else row["variant"]
            seen.add(row["variant"])
            plot.loglog(seconds, errors, color=colours[row["variant"]], lw=1, label=label)
        plot.set_title(problem)
        plot.set_xlabel("seconds of one core")
        plot.set_ylabel("relative L2 error")
        plot.legend(fontsize=8)
    write_figure(path, figure, dpi=100)


if __name__ == "__main__":
    raise SystemExit(main())
