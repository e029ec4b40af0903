"""What an adversary's inputs cost beside natural ones: energy, latency, accuracy, always all of them together."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_effnn import hardware
from lightning_effnn._files import write_figure, write_text
from lightning_effnn._tables import ReportTable
from lightning_effnn.hardware.engines import engine_for
from lightning_effnn.robustness.activations import as_deployed
from lightning_effnn.robustness.attacks import random_inputs, sponge_genetic, sponge_lbfgs, sponge_pgd
from lightning_effnn.robustness.energy import DensityEnergy, TracedEnergy
from lightning_effnn.robustness.objectives import check_images

Attack = Callable[[nn.Module, Tensor], Tensor]
ATTACKS = ("random", "lbfgs", "pgd", "genetic")
_DENSE = 0.98
"""Share of non-zeros from which on there is nothing left to switch on."""


@dataclass(frozen=True)
class Outcome:
    """What one kind of inputs costs.

    Attributes:
        name: of the attack, or ``"natural"``.
        energy_uJ, latency_us: of each input, ``[N]``.
        accuracy: of the model on them; None without labels.
        layers: mean energy in uJ of each layer.
    """

    name: str
    energy_uJ: Tensor
    latency_us: Tensor
    accuracy: float | None
    layers: Mapping[str, float]

    @property
    def mean_uJ(self) -> float:
        """Mean energy."""
        return float(self.energy_uJ.mean())


@dataclass(frozen=True)
class SpongeReport:
    """Natural inputs and crafted ones on one chip.

    Attributes:
        accelerator: name of the chip.
        natural: what the inputs as they are cost.
        attacks: what they cost after each attack.
    """

    accelerator: str
    natural: Outcome
    attacks: tuple[Outcome, ...]

    @property
    def worst(self) -> Outcome:
        """The attack with the highest mean energy; natural inputs if there was no attack."""
        return max(self.attacks, key=lambda outcome: outcome.mean_uJ, default=self.natural)

    @property
    def gain(self) -> float:
        """Mean energy of the worst attack over that of natural inputs."""
        return self.worst.mean_uJ / self.natural.mean_uJ

    def rows(self) -> list[dict[str, Any]]:
        """One row a kind of inputs: name, mean and largest energy, gain, latency, accuracy."""
        return [
            {
                "inputs": outcome.name,
                "energy_uJ": outcome.mean_uJ,
                "largest_uJ": float(outcome.energy_uJ.max()),
                "gain": outcome.mean_uJ / self.natural.mean_uJ,
                "latency_us": float(outcome.latency_us.mean()),
                "accuracy": outcome.accuracy,
            }
            for outcome in (self.natural, *self.attacks)
        ]

    def table(self) -> ReportTable:
        """The rows as a rich table; ``print`` shows it, of the report itself too."""
        count = len(self.natural.energy_uJ)
        title = f"{count} inputs on {self.accelerator}: worst {self.worst.name}, gain {self.gain:.3f}"
        table = ReportTable(title=title, title_justify="left")
        for heading in ("inputs", "energy uJ", "largest uJ", "gain", "latency us", "accuracy"):
            table.add_column(heading, justify="left" if heading == "inputs" else "right")
        for row in self.rows():
            accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
            table.add_row(
                row["inputs"], f"{row['energy_uJ']:,.3f}", f"{row['largest_uJ']:,.3f}", f"{row['gain']:.3f}",
                f"{row['latency_us']:,.2f}", accuracy,
            )  # fmt: skip
        return table

    def __str__(self) -> str:
        return str(self.table())

    def to_csv(self, path: str | Path) -> None:
        """Write :meth:`rows`."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    def plot(self, path: str | Path) -> None:
        """Draw the energy after each attack, and where the worst one spends more. Needs the extra ``plots``."""
        from lightning_effnn.robustness.plots import sponge_figure

        figure = sponge_figure(self)
        write_figure(path, figure)


def evaluate(
    model: nn.Module,
    loader: Iterable[object],
    accelerator: str | Path | hardware.Accelerator = "eyeriss_like",
    attacks: Sequence[str] | Mapping[str, Attack] = ATTACKS,
    eps: float | None = 8 / 255,
    limit: int = 64,
    steps: int = 40,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
) -> SpongeReport:
    """Attack the first inputs of a loader and trace each input, natural and crafted, by itself.

    Args:
        model: any module that takes a batch of inputs ``[B, ...]``.
        loader: of inputs, or of pairs of inputs and labels.
        accelerator: a preset's name, a YAML file or an ``Accelerator``.
        attacks: names out of :data:`ATTACKS`, or functions ``(model, x) -> crafted x`` by name.
        eps: largest change of a number, for named attacks; None lets them go anywhere in the range.
        limit: inputs to take.
        steps: of named attacks; a genetic one has as many generations.
        low, high: range of valid inputs.
        seed: of all random numbers.

    Raises:
        ValueError: an unknown attack, an empty loader, a limit below 1; for named attacks, inputs outside the range.
        TypeError: batches whose first part is no tensor; for named attacks, no floating-point one.

    Warns:
        UserWarning: the chip saves nothing where there are zeros, or the model has next to none: no input can cost
            more.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> report = evaluate(model, [(torch.rand(3, 4), torch.tensor([0, 1, 0]))], attacks=["random"], eps=0.1)
    >>> [row["inputs"] for row in report.rows()]
    ['natural', 'random']
    """
    x, labels = _first(loader, limit)
    if not isinstance(attacks, Mapping):
        check_images(x, low, high)
        attacks = named_attacks(attacks, accelerator, eps, steps, low, high, seed)
    traced = TracedEnergy(model, accelerator)
    natural = _outcome("natural", model, traced, x, labels)
    _warn(natural, traced.reports(x[:1])[0])
    crafted = {name: attack(model, x) for name, attack in attacks.items()}
    outcomes = tuple(_outcome(name, model, traced, inputs, labels) for name, inputs in crafted.items())
    return SpongeReport(traced.chip.name, natural, outcomes)


def named_attacks(
    names: Sequence[str],
    accelerator: str | Path | hardware.Accelerator,
    eps: float | None,
    steps: int,
    low: float,
    high: float,
    seed: int,
) -> dict[str, Attack]:
    """Return the attacks called so, with these settings; energy on the chip is what they raise where it can be.

    Raises:
        ValueError: an unknown name.
    """
    chip = hardware.Accelerator.load(accelerator)
    by_density = engine_for(chip).prices_operations  # if not, count zeros and trace each try
    reach = high - low if eps is None else eps

    def energy(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        return DensityEnergy(model, x, chip) if by_density else TracedEnergy(model, chip)

    def pgd(model: nn.Module, x: Tensor) -> Tensor:
        alpha = min(reach, (high - low) / 4) / 8
        objective: Literal["l0", "energy"] = "energy" if by_density else "l0"
        return sponge_pgd(
            model, x, reach, alpha, steps, objective=objective, accelerator=chip, low=low, high=high, seed=seed
        )

    known: dict[str, Attack] = {
        "random": lambda model, x: random_inputs(x, eps, low, high, seed),
        "lbfgs": lambda model, x: sponge_lbfgs(model, x, steps, eps=eps, low=low, high=high),
        "pgd": pgd,
        "genetic": lambda model, x: sponge_genetic(
            energy(model, x), x, eps, generations=steps, low=low, high=high, seed=seed
        ),
    }
    for name in names:
        if name not in known:
            raise ValueError(f"attacks holds {name!r}: use {', '.join(map(repr, known))}, or functions by name")
    return {name: known[name] for name in names}


def _outcome(name: str, model: nn.Module, traced: TracedEnergy, x: Tensor, labels: Tensor | None) -> Outcome:
    reports = traced.reports(x)
    layers: dict[str, float] = {}
    for report in reports:
        for layer in report.layers:
            spent = float(layer.cost.energy_pJ) * layer.operation.repeats / 1e6 / len(reports)
            layers[layer.operation.name] = layers.get(layer.operation.name, 0.0) + spent
    accuracy = None
    if labels is not None:
        with as_deployed(model), torch.no_grad():
            accuracy = float((model(x).argmax(-1) == labels).float().mean())
    return Outcome(
        name,
        torch.tensor([report.energy_uJ for report in reports], device="cpu"),
        torch.tensor([report.latency_us for report in reports], device="cpu"),
        accuracy,
        layers,
    )


def _first(loader: Iterable[object], limit: int) -> tuple[Tensor, Tensor | None]:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit is {limit!r}: use a whole number of at least 1")
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader:
        x, *rest = batch if isinstance(batch, list | tuple) else (batch,)
        if not isinstance(x, Tensor):
            raise TypeError(f"a batch of the loader begins with a {type(x).__name__}: a tensor of inputs is needed")
        inputs.append(x)
        if rest and isinstance(rest[0], Tensor) and rest[0].shape == x.shape[:1]:
            labels.append(rest[0])
        if sum(map(len, inputs)) >= limit:
            break
    if not inputs:
        raise ValueError("the loader is empty: at least one input is needed")
    x = torch.cat(inputs)[:limit]
    return x, torch.cat(labels)[:limit] if len(labels) == len(inputs) else None


def _warn(natural: Outcome, report: hardware.CostReport) -> None:
    if float(report.totals()["energy_dense_uJ"]) <= natural.mean_uJ * (1 + 1e-6):
        warnings.warn(
            f"natural inputs cost as much as dense ones on {report.accelerator.name}: it saves nothing where there are"
            " zeros, or the model has none; inputs of one size all cost the same",
            stacklevel=3,
        )
