"""Trace other people's networks in batches of copies of one sample: a trace describes one inference in each.

effnn run benchmarks/trace_zoo                                # all of them, an hour on one core
effnn run benchmarks/trace_zoo --only Swin --limit 3          # the first three whose names hold "Swin"

Networks are made from configuration, small, with random weights; their packages (transformers, timm, diffusers, monai,
torch-geometric) are installed into an environment of their own. Each is traced in batches of 1, 2, 3, 5 and 8 copies;
the largest relative deviation of each figure from that of the batch of 1 is its row. Rows are written as they come, and
those of an earlier run stay until they are measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_effnn import hardware
from lightning_effnn._files import write_whole
from lightning_effnn.recipes.benchmarks import _trace_zoo_language, _trace_zoo_other, _trace_zoo_vision
from lightning_effnn.recipes.benchmarks._environment import import_torchvision, installed
from lightning_effnn.recipes.benchmarks._trace_zoo import Entry

Row = dict[str, Any]
BATCHES = (1, 2, 3, 5, 8)
FIGURES = ("macs", "tpu_like uJ", "eyeriss_like uJ", "dram_kB", "weights_kB", "coverage")
EQUAL = 1e-3
REQUIREMENTS = ["transformers>=5", "timm>=1", "diffusers>=0.38", "monai>=1.5", "torch-geometric>=2.6", "einops"]
LIBRARIES = ("transformers", "timm", "diffusers", "monai", "torch-geometric")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and how many agree; 0 if all do that are not refused."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/trace_zoo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", action="append", help="part of a network's or its library's name; repeat for more")
    parser.add_argument("--limit", type=int, help="stop after so many networks")
    parser.add_argument("--folder", type=Path, default=Path(".wild"), help="where the environment is made")
    parser.add_argument("--out", type=Path, default=Path("runs/trace_zoo.json"), help="the rows, as JSON")
    args = parser.parse_args(argv)
    folder = args.folder.resolve() / "trace_zoo"
    if Path(sys.prefix) != folder:
        return _elsewhere(folder, sys.argv[1:] if argv is None else argv)
    chosen = [entry for entry in zoo() if _is_meant(entry, args.only)][: args.limit]
    _prepare()
    for i, entry in enumerate(chosen, 1):
        row = measured(entry)
        _keep(row, args.out)
        print(f"{i}/{len(chosen)} {entry.library} {entry.name}: {_summary(row)}", flush=True)
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    show(rows)
    return 0 if all("error" not in row and (agrees(row) or "refused" in row) for row in rows) else 1


def _elsewhere(folder: Path, argv: Sequence[str]) -> int:
    reason = installed(folder, REQUIREMENTS)
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    command = [str(folder / "bin" / "python"), "-m", "lightning_effnn.recipes.benchmarks.trace_zoo", *argv]
    return subprocess.run(command).returncode


def zoo() -> list[Entry]:
    """Every network; none is built, nothing of theirs is imported."""
    return [*_trace_zoo_language.entries(), *_trace_zoo_vision.entries(), *_trace_zoo_other.entries()]


def measured(entry: Entry) -> Row:
    """The row of a network: its figures, how far they are apart, or in which words it was refused.

    Args:
        entry: a network of the zoo.
    """
    row: Row = {"name": entry.name, "library": entry.library, "by hand": entry.by_hand}
    start = time.perf_counter()
    found = {}
    try:
        for n in BATCHES:
            found[n] = figures(entry, n)
    except Exception as error:
        row["refused" if _is_own(error) else "error"] = f"batch of {n}: {type(error).__name__}: {error}"
        if "error" in row:
            traceback.print_exc()
    row["seconds"] = round(time.perf_counter() - start, 1)
    if 1 not in found:
        return row
    row |= found[1]
    row["notes"] = sorted({note for n in found for note in found[n]["notes"]})
    row["deviation"] = {name: _deviation([found[n][name] for n in found]) for name in FIGURES}
    if entry.by_hand:
        row["to hand"] = found[1]["macs"] / entry.by_hand
    return row


def figures(entry: Entry, n: int) -> Row:
    """Cost of one inference, told from a batch of ``n``; the network is made anew, for some keep a state."""
    torch.manual_seed(0)
    model, batch = entry.build(), entry.batch(n)
    named = {key: value for key, value in batch.items() if key}
    trace = hardware.trace(model, *batch.get("", ()), **named, **entry.told(n))
    tpu, eyeriss = hardware.estimate(trace, "tpu_like"), hardware.estimate(trace, "eyeriss_like")
    values = (trace.macs, tpu.energy_uJ, eyeriss.energy_uJ, tpu.dram_kB, tpu.weights_kB, trace.coverage)
    return dict(zip(FIGURES, values, strict=True)) | {"unknown": sorted(trace.unknown), "notes": trace.notes}


def agrees(row: Row) -> bool:
    """Whether all batches were traced and their figures are equal to 0.1 %."""
    complete = "deviation" in row and "refused" not in row and "error" not in row
    return complete and all(value <= EQUAL for value in row["deviation"].values())


def _deviation(values: Sequence[float]) -> float:
    first = values[0]
    largest = max(abs(value - first) for value in values)
    return largest / abs(first) if first else math.inf if largest else 0.0


def _is_own(error: Exception) -> bool:
    """Whether the tracing says that it can't, rather than that something broke."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    inside = last is not None and last.tb_frame.f_globals["__name__"].startswith("lightning_effnn.hardware")
    return inside and isinstance(error, ValueError | TypeError | NotImplementedError)


def _is_meant(entry: Entry, only: Sequence[str] | None) -> bool:
    return not only or any(name.lower() in f"{entry.library} {entry.name}".lower() for name in only)


def _prepare() -> None:
    """Quiet, one thread, and torchvision importable, for timm."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import_torchvision()


def _keep(row: Row, out: Path) -> None:
    table = json.loads(out.read_text()) if out.exists() else {"rows": []}
    names = ("torch", *LIBRARIES)
    rows = [old for old in table["rows"] if (old["library"], old["name"]) != (row["library"], row["name"])]
    table = {"versions": {name: version(name) for name in names}, "batches": BATCHES, "rows": [*rows, row]}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda path: path.write_text(json.dumps(table, indent=1) + "\n"))


def _summary(row: Row) -> str:
    failed = row.get("refused") or row.get("error")
    if failed:
        return str(failed)[:300]
    text = ", ".join(f"{name} {value:.1%}" for name, value in row["deviation"].items() if value > EQUAL)
    return f"{text or 'equal'}; coverage {row['coverage']:.1%}, {row['seconds']} s"


def show(rows: Sequence[Row]) -> None:
    """Print the table, and how many agree.

    Args:
        rows: as :func:`measured` returns them.
    """
    table = Table(title="Largest deviation over batches of 1, 2, 3, 5, 8", title_justify="left")
    for column in ("library", "network", "MMACs", "by hand", *FIGURES[:-1], "coverage", "s", "refused"):
        table.add_column(column, justify="left" if column in ("library", "network", "refused") else "right")
    for row in rows:
        deviation = row.get("deviation", {})
        table.add_row(
            row["library"], row["name"], f"{row['macs'] / 1e6:.3f}" if "macs" in row else "-",
            f"{row['to hand']:.4f}" if "to hand" in row else "",
            *(f"{deviation[name]:.2%}" if name in deviation else "-" for name in FIGURES[:-1]),
            f"{row['coverage']:.1%}" if "coverage" in row else "-", f"{row['seconds']}",
            str(row.get("refused") or row.get("error") or "")[:60],
        )  # fmt: skip
    Console(width=200).print(table)
    refused = sum("refused" in row for row in rows)
    broken = sum("error" in row for row in rows)
    said = sum(not agrees(row) and bool(row.get("notes")) for row in rows)
    print(
        f"{sum(map(agrees, rows))} of {len(rows)} equal to {EQUAL:.1%}; {said} others with a note of the trace;"
        f" {refused} refused, {broken} failed"
    )


if __name__ == "__main__":
    raise SystemExit(main())
