"""``effnn run``: a YAML recipe by Lightning's own CLI, a benchmark by its ``main``."""

from __future__ import annotations

import glob
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI

from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.recipes import Recipe

_REFUSALS = (ValueError, OSError, ImportError, MisconfigurationException)
"""What a class raises that does not take its arguments; anything else is a bug and keeps its traceback."""


def run_recipe(recipe: Recipe, overrides: Sequence[str]) -> int:
    """Run a recipe with the rest of the command line; return the exit code."""
    if recipe.path.suffix == ".py":
        return _run_benchmark(recipe, overrides)
    _check_yaml(recipe.path)
    try:
        _RecipeCLI(recipe, overrides)
    except MisconfigurationException as error:  # Lightning's word for keys that do not go together
        raise UsageError(f"effnn run {recipe.name}: {error}") from error
    return 0


def fit_recipe(recipe: Recipe, overrides: Sequence[str]) -> dict[str, float]:
    """Run a YAML recipe and return what was logged last, by key.

    Raises:
        UsageError: as :func:`run_recipe`.
    """
    _check_yaml(recipe.path)
    return {key: float(value) for key, value in _RecipeCLI(recipe, overrides).trainer.callback_metrics.items()}


class _RecipeCLI(LightningCLI):
    """``fit`` with a recipe's values as defaults, so that ``--help`` and ``--print_config`` show them."""

    def __init__(self, recipe: Recipe, overrides: Sequence[str]) -> None:
        self._prog = f"effnn run {recipe.name}"
        usage = f"{self._prog} [--help] [--print_config] [--key value ...]"
        fit = {"default_config_files": [glob.escape(str(recipe.path))], "usage": usage}
        super().__init__(
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": self._prog, "usage": usage, "allow_abbrev": False, "fit": fit},
            auto_configure_optimizers=False,
            args=["fit", *overrides],
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self._subcommand_parsers["fit"].prog = self._prog
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; what a class says of its arguments is the message."""
        try:
            super().instantiate_classes()
        except Exception as error:
            reason = _first_cause(error)
            if isinstance(reason, _REFUSALS):
                raise UsageError(f"{self._prog}: {reason}") from error
            raise reason from None

    def after_fit(self) -> None:
        """Say where everything is."""
        trainer = self.trainer
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            folder = logger.log_dir or logger.save_dir
            if folder:
                print(f"{type(logger).__name__}: {folder}")
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best:
            print(f"best checkpoint: {best}")


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that the parser wrapped in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_yaml(path: Path) -> None:
    """Refuse a file that is no YAML mapping, naming the file, line and column."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise UsageError(f"{path} is not valid YAML: {problem}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no keys: a recipe has model, data and trainer (`effnn cp` gives one)")


def _run_benchmark(recipe: Recipe, arguments: Sequence[str]) -> int:
    """Import a benchmark's file and call its ``main`` with the rest of the command line."""
    name = f"_effnn_recipe_{recipe.path.stem}"
    spec = importlib.util.spec_from_file_location(name, recipe.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    if not callable(getattr(module, "main", None)):
        raise UsageError(f"{recipe.path} has no main(argv): a recipe in Python is run by calling it")
    return int(module.main(list(arguments)) or 0)
