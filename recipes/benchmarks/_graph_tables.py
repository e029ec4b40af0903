"""Tables and fronts of the rows of benchmarks/search_graphs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from lightning_effnn.recipes.benchmarks._fronts import dominated_area
from lightning_effnn.search.graph.config import BITS

Row = dict[str, Any]
HAND_MADE = ("GCN-16", "GCN-64", "GAT 8x8")


def _kind(row: Row) -> str:
    settings = row["settings"]
    given = [(letter, settings[key]) for letter, key in (("w", "w_bits"), ("a", "a_bits")) if key in settings]
    how = [letter + "|".join(map(str, options)) for letter, options in given]
    how += [name for name, key in (("mean norm", "norm"), ("taught", "teacher")) if key in settings]
    return ", ".join((row["kind"], *how))


def _name(row: Row) -> str:
    weight = row["settings"].get("cost_weight")
    return _kind(row) if weight is None else f"{_kind(row)} {weight:g}"


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, list[Row]]]:
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault((row["graph"], row["split"]), {}).setdefault(_name(row), []).append(row)
    return groups


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(statistics.mean(row[key] for row in rows))


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each graph and split one line a kind of network: accuracy, sizes, energy, time of the search."""
    return [_table(f"{graph}, {split} split", kinds) for (graph, split), kinds in _groups(rows).items()]


def _table(title: str, kinds: dict[str, list[Row]]) -> Table:
    table = Table(title=f"{title}: mean over seeds; x: smaller than the best by hand", title_justify="left")
    for heading in ("network", "seeds", "acc.", "+-", "kB", "x", "buffers", "x", "peak", "bits", "uJ", "search"):
        table.add_column(heading, justify="right", no_wrap=True)
    hand = [kinds[kind] for kind in HAND_MADE if kind in kinds]
    best = max(hand, key=lambda members: _mean(members, "accuracy")) if hand else None
    for name, members in kinds.items():
        accuracy = [row["accuracy"] for row in members]
        error = f"{statistics.stdev(accuracy) / len(accuracy) ** 0.5:.1%}" if len(accuracy) > 1 else "-"
        timed = [row for row in members if "search_over_training" in row]  # a fit that was paused has no times
        sizes = []
        for key in ("weight_bits", "buffer_bits"):
            size = _mean(members, key)
            sizes += [f"{size / 8e3:.0f}", f"{_mean(best, key) / size:.1f}" if best else "-"]
        table.add_row(
            name, str(len(members)), f"{statistics.mean(accuracy):.1%}", error, *sizes,
            f"{_mean(members, 'peak_bits') / 8e3:.0f}", f"{_mean(members, 'mean_bits'):.1f}",
            f"{_mean(members, 'energy_uJ'):.0f}",
            f"{_mean(timed, 'search_over_training'):.1f}" if timed else "-",
        )  # fmt: skip
    return table


def width_tables(rows: Sequence[Row]) -> list[Table]:
    """For each graph, how often each place of a searched network got how many bits."""
    tables = []
    for (graph, split), kinds in _groups(rows).items():
        own = [row for members in kinds.values() for row in members if row["kind"] == "LPGNAS"]
        found = [row["config"] for row in own if not row["settings"].keys() & {"teacher", "w_bits", "a_bits"}]
        places: dict[str, list[int]] = {}
        for config in found:
            places.setdefault("input_a", []).append(config["input_a"])
            for number, block in enumerate(config["blocks"]):
                for name in BITS:
                    if name in block:
                        places.setdefault(f"{number}.{name}", []).append(block[name])
        if not found:
            continue
        table = Table(title=f"{graph}, {split} split: widths chosen in {len(found)} searches", title_justify="left")
        widths = sorted({bits for chosen in places.values() for bits in chosen})
        for heading in ("place", "median", *(f"{bits} bits" for bits in widths)):
            table.add_column(heading, justify="right")
        for place, chosen in sorted(places.items(), key=lambda item: ("input" not in item[0], item[0])):
            table.add_row(place, f"{statistics.median(chosen):g}", *(str(chosen.count(bits)) for bits in widths))
        tables.append(table)
    return tables


def panels(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For each graph and kind the mean (kB, accuracy) of each setting."""
    return {
        f"{graph}, {split} split": _points({n: [(_mean(m, "weight_bits") / 8e3, _mean(m, "accuracy"), _kind(m[0]))]
                                            for n, m in kinds.items()})
        for (graph, split), kinds in _groups(rows).items()
    }  # fmt: skip


def _points(named: dict[str, list[tuple[float, float, str]]]) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for entries in named.values():
        for size, accuracy, kind in entries:
            points.setdefault(kind, []).append((size, accuracy))
    return points


def areas(rows: Sequence[Row]) -> list[str]:
    """For each graph, the area dominated by the search and by random search with the same cost weights, over seeds."""
    lines = []
    for (graph, split), kinds in _groups(rows).items():
        members = [row for name in kinds for row in kinds[name]]
        corner = _corner(members)
        for how in ("", ", taught", ", mean norm", ", mean norm, taught"):
            lines += _areas(f"{graph} {split}{how}", members, corner, (f"LPGNAS{how}", f"random{how}"))
    return lines


def _areas(title: str, rows: Sequence[Row], corner: tuple[float, float], kinds: tuple[str, str]) -> list[str]:
    """One line for two kinds, none where no seed has both."""
    weights = [{(row["seed"], row["settings"]["cost_weight"]) for row in rows if _kind(row) == kind} for kind in kinds]
    found: list[dict[int, float]] = []
    for kind in kinds:  # as many networks of the one as of the other
        own = [row for row in rows if _kind(row) == kind
               and all((row["seed"], row["settings"]["cost_weight"]) in each for each in weights)]  # fmt: skip
        points = {seed: [(row["weight_bits"], row["accuracy"]) for row in own if row["seed"] == seed]
                  for seed in {row["seed"] for row in own}}  # fmt: skip
        found.append({seed: dominated_area(members, corner) for seed, members in points.items()})
    both = sorted(found[0].keys() & found[1].keys())
    if not both:
        return []
    search, random = (statistics.mean(areas[seed] for seed in both) for areas in found)
    wins = sum(found[0][seed] > found[1][seed] for seed in both)
    return [
        f"{title}: dominated area {search:.3f}, of random search {random:.3f}; larger in {wins} of {len(both)} seeds"
    ]


def _corner(rows: Sequence[Row]) -> tuple[float, float]:
    """Where areas are measured from: the largest network by hand, at twenty points below the best."""
    hand = [row for row in rows if _kind(row) in HAND_MADE]
    return max(row["weight_bits"] for row in hand), max(row["accuracy"] for row in hand) - 0.2
