"""Search graph networks with their bits, against networks by hand, uniform bits, and random search; several seeds.

    EFFNN_DATA=/path/to/data effnn run benchmarks/search_graphs --graph cora --split public --seeds 5
    effnn run benchmarks/search_graphs --seeds 0 --out results.json --plot fronts.png

Every network is trained from scratch in the same way (Adam, the weights of the best validation). A search gives one
network for each ``--cost-weight``. Random search trains as many steps as one search, on networks drawn evenly, and
picks by the same error and cost. Sizes are of weights with biases, and of activations as a sum and as the peak.
Results are kept in ``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from lightning_effnn import hardware
from lightning_effnn._files import write_whole
from lightning_effnn.data import GraphDataModule
from lightning_effnn.modules import LPGNAS, NodeClassifier
from lightning_effnn.recipes.benchmarks._fronts import dominated_area, plot_fronts
from lightning_effnn.search import Controller
from lightning_effnn.search.graph import (
    GraphNet,
    GraphNetConfig,
    GraphSpace,
    LogCost,
    SuperGraphNet,
    graph_cost,
    graph_sizes,
)
from lightning_effnn.search.graph.costs import graph_extents

Row = dict[str, Any]
GRAPHS = ("cora", "citeseer", "cora_ml", "amazon_computers")
RANDOM_TRIES = 6
"""Networks that random search tries; each gets as large a share of the search's epochs."""
HAND_MADE = ("GCN-16", "GCN-64", "GAT 8x8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/search_graphs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--graph", choices=GRAPHS, default="cora")
    parser.add_argument("--split", choices=("public", "random"), default="random")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=300, help="of a search")
    parser.add_argument("--train-epochs", type=int, default=400, help="of a training, at most")
    parser.add_argument("--cost", choices=("bits", "bops", "energy"), default="bits")
    parser.add_argument("--cost-weight", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--out", type=Path, default=Path("runs/search_graphs.json"))
    parser.add_argument("--plot", type=Path, help="draw size against accuracy, one panel a graph")
    args = parser.parse_args(argv)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        try:
            bench = Bench(args, seed)
        except FileNotFoundError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        bench.run()
    rows = _read(args.out)
    Console().print(_table(rows))
    for line in _areas(rows):
        print(line)
    if args.plot:
        plot_fronts(_panels(rows), args.plot)
    return 0


class Bench:
    """All networks of one graph, split and seed; rows that are in the file already aren't run again."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        self.data = GraphDataModule(args.graph, split=args.split, seed=seed)
        self.data.setup()
        self.graph = self.data.graph
        self.size = self.data.num_features, self.data.num_classes
        self.key = {"graph": args.graph, "split": args.split, "seed": seed}

    def run(self) -> None:
        """Train, search and train what was found."""
        hand = {
            "GCN-16": GraphNetConfig.gcn(*self.size, 16),
            "GCN-64": GraphNetConfig.gcn(*self.size, 64),
            "GAT 8x8": GraphNetConfig.gat(*self.size),
        }
        for w_bits, a_bits in ((8, 8), (4, 8), (4, 4)):
            hand[f"GCN-64 W{w_bits}A{a_bits}"] = GraphNetConfig.gcn(*self.size, 64, w_bits, a_bits)
        for kind, config in hand.items():
            if not self._known(kind, {}):
                self._keep(kind, {}, self._trained(config))
        shared = {"epochs": self.args.epochs, "cost": self.args.cost}
        for weight in self.args.cost_weight:
            settings = {**shared, "cost_weight": weight}
            if not self._known("LPGNAS", settings):
                self._keep("LPGNAS", settings, self._searched(**settings))
        settings = {**shared, "cost_weight": min(self.args.cost_weight)}
        if not self._known("LPGNAS, fp32", settings):
            self._keep("LPGNAS, fp32", settings, self._searched(**settings, w_bits=(32,), a_bits=(32,)))
        for weight in self.args.cost_weight:
            settings = {**shared, "cost_weight": weight, "tries": RANDOM_TRIES}
            if not self._known("random", settings):
                config = min(self._tries, key=lambda known: known[1] + weight * known[2])[0]
                self._keep("random", settings, self._trained(config))

    def _searched(self, epochs: int, cost: Any, cost_weight: float, **options: Any) -> Row:
        search = LPGNAS(*self.size, cost=cost, cost_weight=cost_weight, seed=self.seed, **options)
        start = time.perf_counter()
        self._trainer(epochs, check_val_every_n_epoch=epochs).fit(search, self.data)
        seconds = time.perf_counter() - start
        row = self._trained(search.derive().config)
        return {**row, "search_seconds": seconds, "search_over_training": seconds / epochs / row["epoch_seconds"]}

    @cached_property
    def _tries(self) -> list[tuple[GraphNetConfig, float, float]]:
        """Networks drawn evenly, each with its validation error after a short training and its cost."""
        space = GraphSpace(*self.size)
        controller = Controller(space.options, seed=self.seed)
        cost = LogCost(
            graph_cost(self.args.cost, SuperGraphNet(space), self.graph.x, self.graph.edge_index, "eyeriss_like")
        )
        found = []
        for _ in range(RANDOM_TRIES):
            picks = controller.draw()
            chosen = {name: options[picks[name]] for name, options in space.options.items()}
            model, _ = self._fit(space.config(chosen), self.args.epochs // RANDOM_TRIES)
            error = 1 - self._accuracy(model, "val_mask")
            found.append((space.config(chosen), error, float(cost(controller.gates_of(chosen)))))
        return found

    def _trained(self, config: GraphNetConfig) -> Row:
        model, seconds = self._fit(config, self.args.train_epochs)
        sizes = graph_sizes(config, *graph_extents(self.graph.x, self.graph.edge_index))
        rounded = [kept for kept in (*sizes.weights, *sizes.buffers) if not kept.name.endswith(".bias")]
        trace = hardware.trace(model.net.eval(), self.graph.x, edge_index=self.graph.edge_index)
        return {
            "accuracy": self._accuracy(model, "test_mask"),
            "validation": self._accuracy(model, "val_mask"),
            "weight_bits": sizes.weight_bits,
            "buffer_bits": sizes.buffer_bits,
            "peak_bits": sizes.peak_bits,
            "mean_bits": statistics.mean(kept.bits for kept in rounded),
            "energy_uJ": hardware.estimate(trace, "eyeriss_like").energy_uJ,
            "epoch_seconds": seconds,
            "config": config.to_dict(),
        }

    def _fit(self, config: GraphNetConfig, epochs: int) -> tuple[NodeClassifier, float]:
        """Train; the network, and seconds an epoch."""
        L.seed_everything(self.seed, verbose=False)
        model = NodeClassifier(GraphNet(config))
        trainer, start = self._trainer(epochs), time.perf_counter()
        trainer.fit(model, self.data)
        return model.eval(), (time.perf_counter() - start) / max(1, trainer.current_epoch)

    def _trainer(self, epochs: int, **options: Any) -> L.Trainer:
        return L.Trainer(
            max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", **options,
        )  # fmt: skip

    @torch.no_grad()
    def _accuracy(self, model: NodeClassifier, mask: str) -> float:
        model.eval()
        right = model(self.graph.x, self.graph.edge_index).argmax(1) == self.graph.y
        return float(right[self.graph[mask]].float().mean())

    def _known(self, kind: str, settings: Row) -> bool:
        key = {**self.key, "kind": kind, "train_epochs": self.args.train_epochs, "settings": settings}
        return any(all(row.get(k) == v for k, v in key.items()) for row in _read(self.args.out))

    def _keep(self, kind: str, settings: Row, found: Row) -> None:
        row = {**self.key, "kind": kind, "train_epochs": self.args.train_epochs, "settings": settings, **found}
        rows = [*_read(self.args.out), row]  # another process may have written in the meantime
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
        write_whole(self.args.out, lambda beside: beside.write_text(text))
        print(
            f"{row['graph']} {row['split']} seed {row['seed']}: {kind} {settings.get('cost_weight', '')}"
            f" {row['accuracy']:.1%}, {row['weight_bits'] / 8e3:.1f} kB",
            flush=True,
        )


def _read(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return rows


def _name(row: Row) -> str:
    weight = row["settings"].get("cost_weight")
    return row["kind"] if weight is None else f"{row['kind']} {weight:g}"


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, list[Row]]]:
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault((row["graph"], row["split"]), {}).setdefault(_name(row), []).append(row)
    return groups


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="mean over seeds; smaller: against the best network by hand", title_justify="left")
    for heading in ("graph", "network", "seeds", "accuracy", "+-", "model kB", "smaller", "buffers kB", "smaller",
                    "peak kB", "bits", "energy uJ", "search/training"):  # fmt: skip
        table.add_column(heading, justify="right")
    for (graph, split), kinds in _groups(rows).items():
        hand = [kinds[kind] for kind in HAND_MADE if kind in kinds]
        best = max(hand, key=lambda members: _mean(members, "accuracy")) if hand else None
        for name, members in kinds.items():
            accuracy = [row["accuracy"] for row in members]
            error = statistics.stdev(accuracy) / len(accuracy) ** 0.5 if len(accuracy) > 1 else float("nan")
            sizes = []
            for key in ("weight_bits", "buffer_bits"):
                size = _mean(members, key)
                sizes += [f"{size / 8e3:,.1f}", f"{_mean(best, key) / size:.1f}x" if best else "-"]
            ratio = f"{_mean(members, 'search_over_training'):.1f}" if "search_over_training" in members[0] else "-"
            table.add_row(
                f"{graph} {split}", name, str(len(members)), f"{statistics.mean(accuracy):.1%}", f"{error:.1%}", *sizes,
                f"{_mean(members, 'peak_bits') / 8e3:,.1f}", f"{_mean(members, 'mean_bits'):.1f}",
                f"{_mean(members, 'energy_uJ'):,.0f}", ratio,
            )  # fmt: skip
        table.add_section()
    return table


def _panels(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For each graph and kind the mean (kB, accuracy) of each setting."""
    return {
        f"{graph}, {split} split": _points({n: [(_mean(m, "weight_bits") / 8e3, _mean(m, "accuracy"), m[0]["kind"])]
                                            for n, m in kinds.items()})
        for (graph, split), kinds in _groups(rows).items()
    }  # fmt: skip


def _points(named: dict[str, list[tuple[float, float, str]]]) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for entries in named.values():
        for size, accuracy, kind in entries:
            points.setdefault(kind, []).append((size, accuracy))
    return points


def _areas(rows: Sequence[Row]) -> list[str]:
    """For each graph, the area dominated by the search and by random search, mean over the seeds that have both."""
    lines = []
    for (graph, split), kinds in _groups(rows).items():
        members = [row for name in kinds for row in kinds[name]]
        corner = _corner(members)
        areas: dict[str, dict[int, float]] = {"LPGNAS": {}, "random": {}}
        for kind, found in areas.items():
            for seed in {row["seed"] for row in members if row["kind"] == kind}:
                own = [row for row in members if row["kind"] == kind and row["seed"] == seed]
                found[seed] = dominated_area([(row["weight_bits"], row["accuracy"]) for row in own], corner)
        both = sorted(areas["LPGNAS"].keys() & areas["random"].keys())
        if both:
            search, random = (statistics.mean(areas[kind][seed] for seed in both) for kind in ("LPGNAS", "random"))
            wins = sum(areas["LPGNAS"][seed] > areas["random"][seed] for seed in both)
            lines.append(
                f"{graph} {split}: dominated area {search:.3f}, of random search {random:.3f};"
                f" larger in {wins} of {len(both)} seeds"
            )
    return lines


def _corner(rows: Sequence[Row]) -> tuple[float, float]:
    """Where areas are measured from: the largest network by hand, at twenty points below the best."""
    hand = [row for row in rows if row["kind"] in HAND_MADE]
    return max(row["weight_bits"] for row in hand), max(row["accuracy"] for row in hand) - 0.2


if __name__ == "__main__":
    raise SystemExit(main())
