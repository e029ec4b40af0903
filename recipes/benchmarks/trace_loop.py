"""Time the trace of a recurrent cell that is called in a loop, beside torch's own count of operations.

effnn run benchmarks/trace_loop                                   # 1,000 steps, hidden 64, batches of 1 and 8
effnn run benchmarks/trace_loop --steps 100 --rounds 3            # shorter

Both look at each operation as it runs, and small operations take less time than looking at them does: a loop of them is
the worst that can be traced. Seconds are of the processor, in one thread, without the trace's first call; forward,
counter and trace take turns, and the median of each over the rounds is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_effnn import hardware
from lightning_effnn._files import write_text

CELLS: dict[str, Callable[[int, int], nn.Module]] = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell, "RNN": nn.RNNCell}


class Loop(nn.Module):
    """A cell with ``hidden`` features that is called ``steps`` times with the same input [N, hidden]."""

    def __init__(self, cell: str, hidden: int, steps: int) -> None:
        super().__init__()
        self.cell, self.steps = CELLS[cell](hidden, hidden), steps

    def forward(self, x: Tensor) -> Any:
        """The last state."""
        state = None
        for _ in range(self.steps):
            state = self.cell(x, state)
        return state


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each cell and batch size; write them as JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/trace_loop", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(cell, size, args.hidden, args.steps, args.rounds) for cell in CELLS for size in (1, 8)]
    finally:
        torch.set_num_threads(threads)
    table = Table(title=f"{args.steps} steps, hidden {args.hidden}: times the forward pass", title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if args.out:
        write_text(args.out, json.dumps({"steps": args.steps, "hidden": args.hidden, "rows": rows}, indent=1) + "\n")
    return 0


def _row(cell: str, size: int, hidden: int, steps: int, rounds: int) -> dict[str, Any]:
    model, x = Loop(cell, hidden, steps).eval(), torch.randn(size, hidden)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def count() -> None:
        with torch.no_grad(), FlopCounterMode(display=False):
            model(x)

    def trace() -> None:
        hardware.trace(model, x)

    runs = {"forward": forward, "counter": count, "trace": trace}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    return {
        "cell": cell,
        "batch": size,
        "forward, us a step": median["forward"] / steps * 1e6,
        "FlopCounterMode, times": median["counter"] / median["forward"],
        "trace, times": median["trace"] / median["forward"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
