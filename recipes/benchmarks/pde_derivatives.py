"""Value, gradient and Laplacian of a network: forward Taylor mode against nested reverse mode, forwards and backwards.

    effnn run benchmarks/pde_derivatives
    effnn run benchmarks/pde_derivatives --widths 20 64 --rounds 10

Three layers, two of them tanh, in double precision on one thread; both ways take turns, and the least time of all
rounds counts. The second derivatives are asked for as their sum, as ``pde.laplacian`` does, and one by one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_effnn._files import write_text
from lightning_effnn.pde import Indices, Laplacian, nested, taylor

Way = Callable[[nn.Module, Tensor, Indices], Tensor]
WAYS: dict[str, Way] = {"taylor": taylor, "nested": nested}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/pde_derivatives", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--widths", type=int, nargs="+", default=[20, 64, 128, 256])
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/pde_derivatives.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [
        _measured(dim, width, summed, args.points, args.rounds)
        for summed in (True, False) for dim in (2, 3) for width in args.widths
    ]  # fmt: skip
    write_text(args.out, json.dumps(rows, indent=1) + "\n")
    table = Table(title="milliseconds; x: how many times as long nested reverse mode takes", title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    return 0


def _measured(dim: int, width: int, summed: bool, points: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    ).double()
    x = torch.rand(points, dim, dtype=torch.float64)
    single = [tuple(2 * int(k == axis) for k in range(dim)) for axis in range(dim)]
    indices = Indices.closure(dim, [Laplacian(tuple(range(dim)))] if summed else single)
    best: dict[str, list[float]] = {name: [float("inf")] * 2 for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            times = _once(net, x, indices, way)
            best[name] = [min(old, new) for old, new in zip(best[name], times, strict=True)]
    difference = (taylor(net, x, indices) - nested(net, x, indices)).detach().abs().max()
    (ours, ours_back), (theirs, theirs_back) = best["taylor"], best["nested"]
    return {
        "second": "summed" if summed else "single", "dim": dim, "width": width,
        "taylor": 1e3 * ours, "and back": 1e3 * ours_back, "nested": 1e3 * theirs, "nested, back": 1e3 * theirs_back,
        "x": theirs / ours, "x both": (theirs + theirs_back) / (ours + ours_back), "differ by": float(difference),
    }  # fmt: skip


def _once(net: nn.Module, x: Tensor, indices: Indices, way: Way) -> list[float]:
    start = time.process_time()
    loss = way(net, x, indices).square().sum()
    middle = time.process_time()
    loss.backward()  # type: ignore[no-untyped-call]
    net.zero_grad()
    return [middle - start, time.process_time() - middle]


if __name__ == "__main__":
    raise SystemExit(main())
