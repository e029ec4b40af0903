"""Compare the closed-form cost model with results of ZigZag and SCALE-Sim: error table and speed.

effnn run benchmarks/hardware_accuracy                      # the results that come with the package
effnn run benchmarks/hardware_accuracy --reference my.csv   # others, in the columns of either simulator
effnn run benchmarks/hardware_accuracy --simulate 10        # run ZigZag now (extra zigzag) on 10 random layers a chip
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_text
from lightning_effnn.hardware import Accelerator, estimate_layers
from lightning_effnn.hardware.mapping import forget_mappings

REFERENCE = Path(__file__).parent / "reference"
CHIPS = ("tpu_like", "eyeriss_like", "edge_tpu_like")
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/hardware_accuracy", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--reference", type=Path, action="append", help="CSV of ZigZag or SCALE-Sim results; repeatable"
    )
    parser.add_argument("--simulate", type=int, default=0, metavar="N", help="run ZigZag on N random layers a chip")
    parser.add_argument("--seed", type=int, default=0, help="of the random layers")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {}
    if args.simulate:
        results["simulated"] = zigzag_errors(_simulate(args.simulate, args.seed))
    else:
        for path in args.reference or sorted(REFERENCE.glob("*.csv")):
            if not path.is_file():
                print(f"error: reference {str(path)!r} does not exist", file=sys.stderr)
                return 2
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            compare = systolic_errors if rows and "dataflow" in rows[0] else zigzag_errors
            results[path.name if path.parent == REFERENCE else str(path)] = compare(rows)
    for name, table in results.items():
        print(name)
        Console().print(_table(table))
    if args.out:
        write_text(args.out, json.dumps(results, indent=1) + "\n")
    return 0


def zigzag_errors(rows: Sequence[Row]) -> list[Row]:
    """Relative errors of memory energy, energy (8-bit rows) and latency, and how much faster, a chip."""
    table = []
    for chip in dict.fromkeys(row["accelerator"] for row in rows):
        mine = [row for row in rows if row["accelerator"] == chip]
        forget_mappings()
        start = time.perf_counter()
        found = estimate_layers(mine, chip).rows()
        together = time.perf_counter() - start
        alone = [_seconds(row, chip) for row in mine]
        eight = [(f, r) for f, r in zip(found, mine, strict=True) if str(r["w_bits"]) == str(r["i_bits"]) == "8"]
        simulated = [float(row["seconds"]) for row in mine]
        table.append(
            {"chip": chip, "layers": len(mine)}
            | _quantiles("energy", [abs(f["energy_pJ"] / float(r["energy_pJ"]) - 1) for f, r in eight])
            | _quantiles(
                "latency",
                [abs(f["latency_cycles"] / float(r["latency_cycles"]) - 1) for f, r in zip(found, mine, strict=True)],
            )
            | {
                "faster, all at once": sum(simulated) / together,
                "faster, one by one, median": statistics.median(s / a for s, a in zip(simulated, alone, strict=True)),
                "ms a layer, one by one": 1e3 * statistics.median(alone),
            }
        )
    return table


def systolic_errors(rows: Sequence[Row]) -> list[Row]:
    """How many rows have exactly the simulator's cycles, a dataflow."""
    table = []
    for flow in dict.fromkeys(row["dataflow"] for row in rows):
        mine = [row for row in rows if row["dataflow"] == flow]
        equal = 0
        for row in mine:
            chip = Accelerator.systolic(int(row["rows"]), int(row["cols"]), dataflow=flow)
            equal += estimate_layers([row], chip).rows()[0]["compute_cycles"] == int(row["total_cycles"])
        table.append({"dataflow": flow, "layers": len(mine), "equal": equal})
    return table


def _seconds(row: Row, chip: str) -> float:
    """Median of three searches of one layer, nothing remembered."""
    times = []
    for _ in range(3):
        forget_mappings()
        start = time.perf_counter()
        estimate_layers([row], chip)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _quantiles(name: str, errors: Sequence[float]) -> Row:
    return {
        f"{name} median": float(np.median(errors)),
        f"{name} p90": float(np.quantile(errors, 0.9)),
        f"{name} worst": float(max(errors)),
    }


def _simulate(count: int, seed: int) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for chip in CHIPS:
        for index in range(count):
            row = {
                "accelerator": chip,
                "name": f"random{index}",
                "w_bits": 8,
                "i_bits": 8,
                "o_bits": 8,
                **_random(rng),
            }
            start = time.perf_counter()
            found = estimate_layers([row], chip, engine="zigzag").rows()[0]
            measured = {key: found[key] for key in ("energy_pJ", "latency_cycles")}
            rows.append(row | measured | {"seconds": time.perf_counter() - start})
    return rows


def _random(rng: random.Random) -> Row:
    channels = (1, 3, 8, 16, 20, 31, 48, 64, 96, 128, 256)
    size, taps = rng.choice((1, 4, 7, 8, 14, 28)), rng.choice((1, 3, 5))
    kind = rng.choice(("conv", "conv", "gemm", "depthwise"))
    if kind == "gemm":
        return {
            "kind": kind,
            "B": rng.choice((1, 16, 50, 197)),
            "K": rng.choice(channels),
            "C": rng.choice(channels),
        }
    window = {"OY": size, "OX": size, "FY": taps, "FX": taps, "stride": rng.choice((1, 1, 2))}
    if kind == "depthwise":
        return {"kind": kind, "G": rng.choice(channels[2:]), **window}
    return {"kind": kind, "K": rng.choice(channels), "C": rng.choice(channels), **window}


def _table(rows: Sequence[Row]) -> Table:
    """One column a chip or dataflow."""
    table = Table()
    first, *measures = rows[0] if rows else ("nothing",)
    table.add_column(first)
    for row in rows:
        table.add_column(str(row[first]), justify="right")
    for measure in measures:
        table.add_row(measure, *(_cell(measure, row[measure]) for row in rows))
    return table


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if key.startswith(("energy", "latency")):
        return f"{value:.3%}"
    return f"{value:,.0f}x" if key.startswith("faster") else f"{value:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
