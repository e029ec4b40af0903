"""Search graph networks with their bits, against networks by hand, uniform bits, and random search; several seeds.

    EFFNN_DATA=/path/to/data effnn run benchmarks/search_graphs --graph cora --split public --seeds 5
    effnn run benchmarks/search_graphs --graph citeseer --split public --seeds 5 --kinds "GAT 8x8" LPGNAS --taught
    effnn run benchmarks/search_graphs --graph amazon_computers --norm mean --epochs 150 --train-epochs 200
    effnn run benchmarks/search_graphs --graph cora_ml --kinds "GCN-64, bits" --weights 3 4 --activations 4 8
    effnn run benchmarks/search_graphs --seeds 0 --out results.json --plot fronts.png

Every network is trained twice in the same way (Adam, the weights of the best validation), and the one with the better
validation counts: from two random starts, or for a searched network from one and from the weights of the search. A
search gives one network for each ``--cost-weight``; so does a search for the bits of GCN-64 alone. Random search trains
as many steps as all searches of whole networks, on networks drawn evenly, and picks one for each weight by the same
error and cost. With ``--taught`` all are trained once more, with the scores of GCN-64 in fp32 to learn from beside the
labels; searches are the same. Sizes are of weights with biases, and of activations as a sum and as the peak; mean bits
are over tensors. Results are kept in ``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from lightning_effnn import hardware
from lightning_effnn._files import write_text
from lightning_effnn.data import GraphDataModule
from lightning_effnn.modules import LPGNAS, NodeClassifier
from lightning_effnn.recipes.benchmarks._fronts import plot_fronts
from lightning_effnn.recipes.benchmarks._graph_tables import areas, panels, tables, width_tables
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
KINDS = ("GCN-16", "GCN-64", "GAT 8x8", "GCN-64 W8A8", "GCN-64 W4A8", "GCN-64 W4A4", "LPGNAS", "GCN-64, bits",
         "LPGNAS, fp32", "random")  # fmt: skip
GCN_64: dict[str, Any] = {
    "hidden_channels": (64,), "attention": ("gcn",), "aggregation": ("sum",), "activation": ("relu",),
    "skip": ("none",), "w_bits": (2, 4, 6, 8), "a_bits": (2, 4, 6, 8),
}  # fmt: skip
"""A space of one architecture: only its bits are searched."""
RANDOM_TRIES = 6
"""Networks that random search tries for each cost weight; together they train as many epochs as one search."""


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
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[], metavar="KIND",
                        help=f"only these: {', '.join(map(repr, KINDS))}")  # fmt: skip
    parser.add_argument("--cost-weight", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument(
        "--norm",
        choices=("none", "mean"),
        default="none",
        help="of searched and of random networks: mean is for graphs of many edges a node",
    )
    for name in ("weights", "activations"):
        parser.add_argument(f"--{name}", type=int, nargs="+", choices=(*range(1, 17), 32), metavar="BITS",
                            help="bits that searches choose from")  # fmt: skip
    parser.add_argument("--taught", action="store_true", help="train all taught by GCN-64 in fp32 too")
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
    for table in (*tables(rows), *width_tables(rows)):
        Console(width=130).print(table)
    for line in areas(rows):
        print(line)
    if args.plot:
        plot_fronts(panels(rows), args.plot)
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
            self._rows(kind, {}, partial(self._trained, config))
        norm: Row = {} if self.args.norm == "none" else {"norm": self.args.norm}
        if norm:  # what it does by itself
            self._rows("GCN-64", norm, partial(self._trained, replace(hand["GCN-64"], **norm)))
        shared = {"epochs": self.args.epochs, "cost": self.args.cost, **norm}
        given = {"w_bits": self.args.weights, "a_bits": self.args.activations}
        bits = {name: options for name, options in given.items() if options}
        for weight in self.args.cost_weight:
            settings = {**shared, "cost_weight": weight, **bits}
            self._rows("LPGNAS", settings, self._search(**settings))
            self._rows("GCN-64, bits", settings, self._search(**(GCN_64 | settings)))
        settings = {**shared, "cost_weight": min(self.args.cost_weight)}
        self._rows("LPGNAS, fp32", settings, self._search(**settings, w_bits=(32,), a_bits=(32,)))
        train = cache(self._trained)  # one network may be the best for several weights
        for weight in self.args.cost_weight:
            settings = {**shared, "cost_weight": weight, "tries": self._count}
            self._rows("random", settings, partial(self._best_of_tries, train, weight))

    def _rows(self, kind: str, settings: Row, train: Callable[[GraphNet | None], Row]) -> None:
        """Add what is missing: the row of a network that is trained alone, and of the same one taught."""
        if not self._done(kind, settings):
            self._keep(kind, settings, train(None))
        taught = {**settings, "teacher": "GCN-64"}
        if self.args.taught and not self._done(kind, taught):
            self._keep(kind, taught, train(self._teacher))

    def _search(self, epochs: int, cost: Any, cost_weight: float, **options: Any) -> Callable[[GraphNet | None], Row]:
        """What trains the network that a search finds; the search runs once, when it is needed."""

        @cache
        def found() -> tuple[LPGNAS, float]:
            search = LPGNAS(*self.size, cost=cost, cost_weight=cost_weight, seed=self.seed, **options)
            start = time.perf_counter()
            self._trainer(epochs, check_val_every_n_epoch=epochs).fit(search, self.data)
            return search, time.perf_counter() - start

        def train(teacher: GraphNet | None) -> Row:
            search, seconds = found()
            start = search.derive((self.graph.x, self.graph.edge_index))
            row = self._trained(start.config, teacher, start)
            return {**row, "search_seconds": seconds, "search_over_training": seconds / epochs / row["epoch_seconds"]}

        return train

    def _best_of_tries(self, train: Callable[..., Row], weight: float, teacher: GraphNet | None) -> Row:
        return train(min(self._tries, key=lambda known: known[1] + weight * known[2])[0], teacher)

    @cached_property
    def _teacher(self) -> GraphNet:
        """GCN-64 in fp32, the better of two."""
        fits = [self._fit(None, GraphNetConfig.gcn(*self.size, 64), start)[0] for start in range(2)]
        best = max(fits, key=lambda model: self._accuracy(model, "val_mask"))
        assert isinstance(best.net, GraphNet)
        return best.net

    @property
    def _count(self) -> int:
        return RANDOM_TRIES * len(self.args.cost_weight)

    @cached_property
    def _tries(self) -> list[tuple[GraphNetConfig, float, float]]:
        """Networks drawn evenly, each with its validation error after a short training and its cost."""
        space = GraphSpace(*self.size, norm=self.args.norm)
        controller = Controller(space.options, seed=self.seed)
        cost = LogCost(
            graph_cost(self.args.cost, SuperGraphNet(space), self.graph.x, self.graph.edge_index, "eyeriss_like")
        )
        found = []
        for _ in range(self._count):
            picks = controller.draw()
            chosen = {name: options[picks[name]] for name, options in space.options.items()}
            model, _ = self._fit(None, space.config(chosen), epochs=self.args.epochs // RANDOM_TRIES)
            error = 1 - self._accuracy(model, "val_mask")
            found.append((space.config(chosen), error, float(cost(controller.gates_of(chosen)))))
        return found

    def _trained(self, config: GraphNetConfig, teacher: GraphNet | None, start: GraphNet | None = None) -> Row:
        fits = [self._fit(None if number else start, config, number, teacher=teacher) for number in range(2)]
        starts = [self._accuracy(model, "val_mask") for model, _ in fits]
        model, _ = fits[starts.index(max(starts))]
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
            "epoch_seconds": fits[1][1],
            "starts": [[value, self._accuracy(fit, "test_mask")] for value, (fit, _) in zip(starts, fits, strict=True)],
            "config": config.to_dict(),
        }

    def _fit(
        self,
        net: GraphNet | None,
        config: GraphNetConfig,
        start: int = 0,
        epochs: int = 0,
        teacher: GraphNet | None = None,
    ) -> tuple[NodeClassifier, float]:
        """Train; the network, and seconds an epoch."""
        L.seed_everything(1000 * start + self.seed, verbose=False)
        model = NodeClassifier(net or GraphNet(config), teacher=teacher)
        trainer, begin = self._trainer(epochs or self.args.train_epochs), time.perf_counter()
        trainer.fit(model, self.data)
        return model.eval(), (time.perf_counter() - begin) / max(1, trainer.current_epoch)

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

    def _done(self, kind: str, settings: Row) -> bool:
        """Whether a row is in the file already, or of a kind that isn't asked for."""
        if self.args.kinds and kind not in self.args.kinds:
            return True
        key = {**self.key, "kind": kind, "train_epochs": self.args.train_epochs, "settings": settings}
        return any(all(row.get(k) == v for k, v in key.items()) for row in _read(self.args.out))

    def _keep(self, kind: str, settings: Row, found: Row) -> None:
        row = {**self.key, "kind": kind, "train_epochs": self.args.train_epochs, "settings": settings, **found}
        rows = [*_read(self.args.out), row]  # another process may have written in the meantime
        text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
        write_text(self.args.out, text)
        print(
            f"{row['graph']} {row['split']} seed {row['seed']}: {kind} {settings.get('cost_weight', '')}"
            f" {row['accuracy']:.1%}, {row['weight_bits'] / 8e3:.1f} kB",
            flush=True,
        )


def _read(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
