"""``effnn sweep``: one recipe with every combination of some values, in turn, by Ray Tune or as a W&B sweep."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.table import Table

from lightning_effnn._files import write_text
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.recipes import Recipe
from lightning_effnn.cli.run import fit_recipe

Values = dict[str, str]
"""One combination: a value for each key of the recipe."""


@dataclass(frozen=True)
class Sweep:
    """What is to be tried.

    Attributes:
        recipe: a YAML recipe.
        grid: values by key.
        overrides: the same for all.
        metric, mode: what is best, and whether it is the least (``"min"``) or the most (``"max"``).
        folder: where trials and results go.
    """

    recipe: Recipe
    grid: Mapping[str, Sequence[str]]
    overrides: tuple[str, ...] = ()
    metric: str = "val/acc"
    mode: Literal["min", "max"] = "max"
    folder: Path = field(default=Path("runs/sweep"))

    def combinations(self) -> list[Values]:
        """Every combination of the values."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def arguments(self, values: Values) -> list[str]:
        """The command line of one combination."""
        return [*self.overrides, *(f"--{key}={value}" for key, value in values.items())]


def parse_grid(given: Sequence[str]) -> dict[str, list[str]]:
    """Values by key, from texts such as ``trainer.max_epochs=1,2``; commas within brackets belong to a value.

    Raises:
        UsageError: no such text, a key twice or without values.

    >>> parse_grid(["trainer.max_epochs=1,2", "trainer.callbacks.init_args.weights=[2,4],[8]"])
    {'trainer.max_epochs': ['1', '2'], 'trainer.callbacks.init_args.weights': ['[2,4]', '[8]']}
    """
    grid: dict[str, list[str]] = {}
    for text in given:
        key, equals, values = text.removeprefix("--").partition("=")
        found = [value.strip() for value in re.split(r",(?![^\[\(\{]*[\]\)\}])", values)]
        if not equals or not key or not all(found):
            raise UsageError(f"--param {text!r}: a key and its values are needed, such as trainer.max_epochs=1,2")
        if key in grid:
            raise UsageError(f"--param {text!r}: {key} is given twice")
        grid[key] = found
    if not grid:
        raise UsageError("a sweep needs a key and its values: --param trainer.max_epochs=1,2")
    return grid


def run_sweep(sweep: Sweep, engine: str, at_once: int, console: Console) -> int:
    """Run every combination, print and write the results; 0 if all ended.

    Raises:
        UsageError: a recipe in Python, an engine that isn't installed, more than one trial at once by an engine that
            can't, a metric that no trial logged.
    """
    if engine != "ray" and at_once != 1:
        raise UsageError(f"--at-once {at_once} needs --engine ray: --engine {engine} runs one trial after the other")
    if sweep.recipe.path.suffix == ".py":
        raise UsageError(f"{sweep.recipe.name} is a program: a sweep needs a recipe in YAML")
    sweep.folder.mkdir(parents=True, exist_ok=True)
    if engine == "ray":
        rows = _by_ray(sweep, at_once)
    else:
        rows = _in_turn(sweep, _wandb_run(sweep) if engine == "wandb" else None)
    results = json.dumps([{"values": values, "metrics": metrics} for values, metrics in rows], indent=1) + "\n"
    write_text(sweep.folder / "results.json", results)
    known = sorted({key for _, metrics in rows for key in metrics})
    if sweep.metric not in known:
        raise UsageError(f"no trial logged {sweep.metric!r}; there are: {', '.join(known) or 'none, for none ended'}")
    sign = -1 if sweep.mode == "max" else 1
    rows.sort(key=lambda row: sign * row[1].get(sweep.metric, float("inf") * sign))
    table = Table(title=f"{sweep.recipe.name} by {sweep.metric}, best first", title_justify="left")
    for heading in (*sweep.grid, sweep.metric):
        table.add_column(heading)
    for values, metrics in rows:
        table.add_row(*values.values(), f"{metrics.get(sweep.metric, float('nan')):.5g}")
    console.print(table)
    console.print(f"all that was logged: {sweep.folder / 'results.json'}", markup=False, soft_wrap=True)
    return 0 if len(rows) == len(sweep.combinations()) else 1


def _by_ray(sweep: Sweep, at_once: int) -> list[tuple[Values, dict[str, float]]]:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "0")  # of Ray Train, whose settings of a run Tune does not take
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'lightning_effnn[sweep]'") from error
    recipe = Recipe(sweep.recipe.name, sweep.recipe.path.resolve())

    def trial(values: Values) -> None:  # in a folder of its own: a recipe's relative paths lead there
        own = Path(tune.get_context().get_trial_dir())
        own.mkdir(parents=True, exist_ok=True)
        os.chdir(own)
        tune.report(fit_recipe(recipe, sweep.arguments(values)))

    ray.init(num_cpus=at_once, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        tuner = tune.Tuner(
            trial,
            param_space={key: tune.grid_search(list(values)) for key, values in sweep.grid.items()},
            run_config=tune.RunConfig(name="ray", storage_path=str(sweep.folder.resolve()), verbose=0),
        )
        grid = tuner.fit()
    finally:
        ray.shutdown()
    found = [grid[k] for k in range(len(grid))]
    for result in found:
        if result.error is not None:
            print(f"{result.config}: {result.error}")
    return [
        ({key: result.config[key] for key in sweep.grid}, _numbers(result.metrics or {}))
        for result in found
        if result.error is None and result.config is not None
    ]


def sweep_config(sweep: Sweep) -> dict[str, Any]:
    """What ``wandb sweep`` takes: its agents call ``effnn run`` with the keys that the recipe has."""
    return {
        "name": sweep.recipe.name,
        "method": "grid",
        "metric": {"name": sweep.metric, "goal": "maximize" if sweep.mode == "max" else "minimize"},
        "parameters": {key: {"values": [yaml.safe_load(v) for v in values]} for key, values in sweep.grid.items()},
        "command": ["effnn", "run", str(sweep.recipe.name), *sweep.overrides, *_LOGGER, "${args}"],
    }


_LOGGER = ("--trainer.logger=lightning.pytorch.loggers.WandbLogger",)


def _wandb_run(sweep: Sweep) -> Callable[[Values], Any]:
    """Write the sweep's configuration; return what begins a run of W&B, which stays offline without a login."""
    try:
        import wandb
    except ImportError as error:
        raise UsageError("--engine wandb needs W&B: pip install 'lightning_effnn[wandb]'") from error
    text = yaml.safe_dump(sweep_config(sweep), sort_keys=False)
    write_text(sweep.folder / "sweep.yaml", text)
    settings: dict[str, Any] = {"dir": sweep.folder.resolve(), "project": "effnn", "group": sweep.recipe.name}

    def begin(values: Values) -> Any:
        try:
            return wandb.init(**settings, config=dict(values), reinit=True)
        except wandb.errors.UsageError:  # there is no login, and nobody to ask for one
            print(
                f"not logged in to W&B: runs stay in {sweep.folder / 'wandb'}; `wandb login` and `wandb sync` send them"
            )
            settings["mode"] = "offline"
            return wandb.init(**settings, config=dict(values), reinit=True)
        except wandb.errors.Error as error:
            raise UsageError(f"--engine wandb: {error}; with WANDB_MODE=offline runs stay here") from error

    return begin


def _in_turn(sweep: Sweep, begin: Callable[[Values], Any] | None) -> list[tuple[Values, dict[str, float]]]:
    """Run one after the other in this process, each in a folder of its own: a recipe's relative paths lead there."""
    recipe = Recipe(sweep.recipe.name, sweep.recipe.path.resolve())
    start, folder, rows = Path.cwd(), sweep.folder.resolve(), []
    for number, values in enumerate(sweep.combinations()):
        own = folder / f"{number:03}"
        own.mkdir(exist_ok=True)
        os.chdir(own)
        try:
            with nullcontext() if begin is None else begin(values):
                logger = () if begin is None else _LOGGER
                rows.append((values, _numbers(fit_recipe(recipe, [*sweep.arguments(values), *logger]))))
        except UsageError:
            raise
        except Exception as error:  # the others may still tell something
            print(f"{values}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os.chdir(start)
    return rows


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What training logged, without the engine's own bookkeeping."""
    return {k: float(v) for k, v in metrics.items() if "/" in k and isinstance(v, int | float) and "config/" not in k}
