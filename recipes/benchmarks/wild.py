"""Run other people's projects, unchanged, with the callbacks; each in an environment of its own.

effnn run benchmarks/wild                                     # all of recipes/wild, what `make wild` does
effnn run benchmarks/wild --only chemprop --only pytorch_tabular

A project's packages come from the package index, those that are here already are shared. One that can't be installed
is passed over with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_text
from lightning_effnn.recipes.benchmarks._environment import installed

Row = dict[str, Any]
PROJECTS = tuple(
    sorted(
        file.name.removesuffix(".py")
        for file in resources.files("lightning_effnn.recipes.wild").iterdir()
        if file.name.endswith(".py") and not file.name.startswith("_")
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0 if every project that could be installed came out as it should."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/wild", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", action="append", choices=PROJECTS, help="projects; repeat for more")
    parser.add_argument("--folder", type=Path, default=Path(".wild"), help="where the environments are made")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    rows = [_row(name, args.folder.resolve() / name) for name in args.only or PROJECTS]
    Console(width=140).print(_table(rows))
    for row in rows:
        if "skipped" in row:
            print(f"{row['project']}: skipped: {row['skipped']}")
    if args.out:
        text = json.dumps(rows, indent=1) + "\n"
        write_text(args.out, text)
    return 0 if all(row.get("ok") or "skipped" in row for row in rows) else 1


def _row(name: str, folder: Path) -> Row:
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    reason = installed(folder, importlib.import_module(f"lightning_effnn.recipes.wild.{name}").REQUIREMENTS)
    if reason:
        return {"project": name, "skipped": reason}
    ready = time.perf_counter()
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    command = [str(folder / "bin" / "python"), "-m", f"lightning_effnn.recipes.wild.{name}", "--out", str(out)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not out.exists():
        print(done.stdout[-3000:])
        return {"project": name, "ok": False, "error": done.stdout.strip().rpartition("\n")[2]}
    seconds = {"install_s": round(ready - start, 1), "run_s": round(time.perf_counter() - ready, 1)}
    found: Row = json.loads(out.read_text())
    return found | seconds


COLUMNS = (
    "project", "model", "metric", "plain", "compressed", "searched", "bits w / a", "times smaller", "energy, uJ",
    "compressed, uJ", "coverage",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A finished project's row of the table."""
    monitor, compression, search = row["monitor"], row["compression"], row["search"]
    return [
        f"{row['project']} {row['version']} ({row['trainer']})",
        f"{row['model']}, {row['parameters']:,} parameters",
        row["metric"],
        f"{row['plain']:.3g}",
        f"{compression['metric']:.3g}",
        f"{search['metric']:.3g}",
        f"{search['bits_w']:.1f} / {search['bits_a']:.1f}",
        f"{compression['ratio']:.1f}",
        f"{monitor['energy_uJ']:,.1f}",
        f"{compression['energy_uJ']:,.1f}",
        f"{monitor['coverage']:.1%}",
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The table as the card shows it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows if "monitor" in row)])


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="Other people's projects", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        if "monitor" in row:
            table.add_row(*cells(row))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
