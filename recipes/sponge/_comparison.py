"""What the recipes of this folder share: fits with and without a defence, attacked, in one table and one figure."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_figure, write_text
from lightning_effnn.callbacks import SpongeTraining
from lightning_effnn.modules import ImageClassifier
from lightning_effnn.robustness import ATTACKS, evaluate

Row = dict[str, Any]
_SETTINGS = ("epochs", "limit", "eps", "share", "inputs", "steps", "precision", "accelerator")


@dataclass(frozen=True)
class Study:
    """A network, its data, and how long it trains.

    Attributes:
        name: of the recipe.
        data: images in [0, 1], by seed and number of images (None for all).
        model: anew for each fit.
        epochs, weight, eps, share, inputs: what the command line takes if it isn't told.
        precision: of the fits; energies are always those of fp32.
    """

    name: str
    data: Callable[[int, int | None], L.LightningDataModule]
    model: Callable[[], ImageClassifier]
    epochs: int
    weight: float
    eps: float
    share: float
    inputs: int
    precision: str


def compare(study: Study, description: str, argv: Sequence[str] | None) -> int:
    """Run what is missing, print the table, draw the figure."""
    folder = Path("runs") / study.name.replace("/", "_")
    parser = argparse.ArgumentParser(prog=f"effnn run {study.name}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=study.epochs)
    parser.add_argument("--limit", type=int, help="images of each file, all if not given")
    parser.add_argument("--weights", type=float, nargs="+", default=[study.weight], help="of the penalties")
    parser.add_argument("--eps", type=float, default=study.eps, help="of pixels, in [0, 1]")
    parser.add_argument("--share", type=float, default=study.share, help="of each batch, attacked in sponge training")
    parser.add_argument("--inputs", type=int, default=study.inputs, help="test images that are attacked")
    parser.add_argument("--steps", type=int, default=40, help="of each attack")
    parser.add_argument("--precision", default=study.precision, help="of the fits")
    parser.add_argument("--accelerator", default="eyeriss_like")
    parser.add_argument("--out", type=Path, default=folder / "results.json")
    parser.add_argument("--plot", type=Path, default=folder / "energy.png")
    args = parser.parse_args(argv)
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in range(args.seeds):
        for defence, weight in _defences(args.weights):
            key = {"seed": seed, "defence": defence, "weight": weight}
            key |= {name: getattr(args, name) for name in _SETTINGS}
            if any(all(row.get(name) == value for name, value in key.items()) for row in rows):
                continue
            rows.append(key | measured(study, key))
            text = json.dumps(rows, indent=1) + "\n"
            write_text(args.out, text)
    Console().print(_table(rows))
    try:
        _plot(rows, args.plot)
    except ImportError as error:
        print(f"no figure: {error}")
    else:
        print(f"figure: {args.plot}")
    return 0


def _defences(weights: Sequence[float]) -> list[tuple[str, float]]:
    return [("none", 0.0), *[(name, weight) for weight in weights for name in ("penalty", "sponge training")]]


def measured(study: Study, key: Row) -> Row:
    """Train one network, attack it."""
    L.seed_everything(key["seed"], verbose=False)
    data = study.data(key["seed"], key["limit"])
    model = study.model()
    callbacks: list[L.Callback] = []
    if key["defence"] == "penalty":
        callbacks = [SpongeTraining(key["weight"], "clean", share=1.0)]
    elif key["defence"] == "sponge training":
        callbacks = [SpongeTraining(key["weight"], ("pgd", "unbounded"), key["eps"], share=key["share"])]
    trainer = L.Trainer(
        max_epochs=key["epochs"], callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, precision=key["precision"],
    )  # fmt: skip
    spent = time.process_time()
    trainer.fit(model, data)
    spent = time.process_time() - spent
    (test,) = trainer.test(model, data, verbose=False)
    attacks: Row = {}
    for bound, eps in (("eps", key["eps"]), ("free", None)):
        report = evaluate(
            model.net, data.test_dataloader(), key["accelerator"], ATTACKS, eps, key["inputs"], key["steps"],
            seed=key["seed"],
        )  # fmt: skip
        attacks |= {f"{outcome.name}, {bound}": outcome.mean_uJ for outcome in report.attacks}
    worst = max(attacks, key=lambda name: attacks[name])
    row = {
        "accuracy": test["test/acc"],
        "natural_uJ": report.natural.mean_uJ,
        "natural_max_uJ": float(report.natural.energy_uJ.max()),
        "worst_uJ": attacks[worst],
        "worst": worst,
        "gain": attacks[worst] / report.natural.mean_uJ,
        "attacks_uJ": attacks,
        "fit_cpu_s": spent,
    }
    print(f"seed {key['seed']}, {key['defence']} x {key['weight']:g}: {row['accuracy']:.1%}, natural"
          f" {row['natural_uJ']:.2f} uJ, worst {row['worst_uJ']:.2f} uJ ({worst}), gain {row['gain']:.3f}",
          flush=True)  # fmt: skip
    return row


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = row["defence"] if not row["weight"] else f"{row['defence']} x {row['weight']:g}"
        groups.setdefault(label, []).append(row)
    return groups


def _mean(rows: Sequence[Row], key: str) -> float:
    values: list[float] = [row[key] for row in rows]
    return statistics.mean(values)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="mean over seeds; worst of all attacks", title_justify="left")
    for heading in ("defence", "seeds", "accuracy", "natural uJ", "worst uJ", "gain", "fit s"):
        table.add_column(heading, justify="left" if heading == "defence" else "right")
    for label, members in _groups(rows).items():
        table.add_row(
            label, str(len(members)), f"{_mean(members, 'accuracy'):.1%}", f"{_mean(members, 'natural_uJ'):.2f}",
            f"{_mean(members, 'worst_uJ'):.2f}", f"{_mean(members, 'gain'):.3f}", f"{_mean(members, 'fit_cpu_s'):.0f}",
        )  # fmt: skip
    return table


def _plot(rows: Sequence[Row], path: Path) -> None:
    """A group of bars for each defence: natural inputs, then each attack."""
    from matplotlib.figure import Figure

    groups = _groups(rows)
    names = ["natural", *rows[0]["attacks_uJ"]]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        heights = [
            _mean(members, "natural_uJ") if name == "natural"
            else statistics.mean(float(row["attacks_uJ"][name]) for row in members)
            for members in groups.values()
        ]  # fmt: skip
        color = "black" if name == "natural" else None
        axes.bar([n + number * width for n in range(len(groups))], heights, width, label=name, color=color)
    axes.axhline(_mean(groups["none"], "natural_uJ"), color="gray", linestyle=":")
    axes.set_xticks([n + 0.4 - width / 2 for n in range(len(groups))], list(groups))
    axes.set_ylabel("mean energy of an input [uJ]")
    axes.set_ylim(bottom=0.6 * min(_mean(members, "natural_uJ") for members in groups.values()))
    axes.legend(fontsize=7, ncols=3, loc="upper right")
    write_figure(path, figure)
