"""What the recipes on strings share: the table, and the time that a guard takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from lightning_effnn.robustness import WallTime

Row = dict[str, Any]


def guard_share(guard: nn.Module, model: Callable[[Tensor], Any], x: Tensor, repeats: int = 100) -> float:
    """Return the time that a guard takes by itself over that of the model, on one input.

    The guard is timed around a model that answers at once: the difference of two long times would be noise.

    Args:
        guard: has its model as ``model``.
        model: what it takes to answer ``x``.
        x: a natural input.
        repeats: of both; the fastest counts, which nothing else on the machine delayed.
    """
    answer = model(x)
    around = guard.model
    guard.model = _Answer(answer)
    try:
        alone = _seconds(lambda: guard(x), repeats)
    finally:
        guard.model = around
    return alone / _seconds(lambda: model(x), repeats)


def wall_ms(call: Callable[[str], Any], groups: Mapping[str, Sequence[str]], rounds: int = 10) -> dict[str, float]:
    """Return the mean wall time of each group's strings in ms, of each string the least of all rounds.

    The groups take turns, so that what else the machine does meets all of them.

    Args:
        call: of one string.
        groups: strings by name.
        rounds: how often each string is tried.
    """
    clock = WallTime(call, repeats=1)
    least = {name: clock(texts) for name, texts in groups.items()}
    for _ in range(rounds - 1):
        for name, texts in groups.items():
            least[name] = torch.minimum(least[name], clock(texts))
    return {name: 1000 * float(seconds.mean()) for name, seconds in least.items()}


class _Answer(nn.Module):
    """A model that knows its answer."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer

    def generate(self, x: Tensor, limit: int | None) -> Any:
        return self.answer


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    spent = []
    with torch.no_grad():
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            spent.append(time.perf_counter() - begin)
    return min(spent)


def table(title: str, rows: Sequence[Row], columns: Sequence[str]) -> Table:
    """Mean over seeds by alphabet: natural, then random and crafted strings with their gains; what the guard stops."""
    result = Table(title=f"{title}, mean over seeds", title_justify="left")
    for heading in ("alphabet", "strings", *columns):
        result.add_column(heading, justify="right" if heading in columns else "left")
    for alphabet in dict.fromkeys(row["alphabet"] for row in rows):
        members = [row for row in rows if row["alphabet"] == alphabet]
        natural = {name: statistics.mean(row["costs"]["natural"][name] for row in members) for name in columns}
        for kind in ("natural", "random", "genetic"):
            cells = []
            for name in columns:
                value = statistics.mean(row["costs"][kind][name] for row in members)
                gain = "" if kind == "natural" else f" ({value / natural[name]:.2f}x)"
                cells.append(f"{value:,.1f}{gain}")
            result.add_row(alphabet, kind, *cells)
        guards = [row["guard"] for row in members]
        stopped = [guard["stopped"] for guard in guards if guard["stopped"] is not None]
        stops = f"stops {statistics.mean(stopped):.1%} of sponges" if stopped else "meets no sponge"
        refused, share = (
            statistics.mean(guard[name] for guard in guards) for name in ("natural_refused", "share_of_time")
        )
        summary = f"guard {stops}, refuses {refused:.2%} of natural ones, takes {share:.2%} of the time"
        result.add_row("", summary, end_section=True)
    return result
