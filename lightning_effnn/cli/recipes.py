"""Recipes: the registry is the folder. What a file does is its own first line."""

from __future__ import annotations

import ast
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_effnn._files import is_stream, is_taken, write_whole
from lightning_effnn.cli._errors import UsageError, unknown_name


@dataclass(frozen=True)
class Recipe:
    """A YAML file for the trainer, or a benchmark's Python file.

    Attributes:
        name: what one types: the path below the recipes' folder, without its ending.
        path: where the file is.
    """

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """One line of what it does: the first comment of a YAML file, or of a docstring."""
        text = self.path.read_text(encoding="utf-8")
        if self.path.suffix == ".py":
            return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        comments = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
        return next((line for line in comments if line), "")


def find_recipes(folder: Path | None = None) -> dict[str, Recipe]:
    """Return every recipe below ``folder`` by name: all YAML files, and Python files in its folders (benchmarks)."""
    root = folder or Path(str(resources.files("lightning_effnn.recipes")))
    files = sorted(root.rglob("*.yaml")) + sorted(root.glob("*/*.py"))
    recipes = {}
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        if not any(part.startswith(("_", ".")) for part in parts):
            recipes["/".join(parts)] = Recipe("/".join(parts), path)
    return recipes


def get_recipe(name_or_path: str) -> Recipe:
    """Return the recipe of that name, or the one in that file."""
    recipes = find_recipes()
    if name_or_path in recipes:
        return recipes[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml", ".py"):
        raise unknown_name("recipe", name_or_path, recipes)
    if not path.is_file():
        raise UsageError(f"no file {name_or_path!r}: give a recipe's file, or a name from `effnn ls`")
    return Recipe(name_or_path, path)


def list_recipes(console: Console) -> None:
    """Print the recipes, each with one line of what it does."""
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it does")
    for recipe in find_recipes().values():
        table.add_row(recipe.name, recipe.summary)
    console.print(table)


def copy_recipe(name: str, destination: str, *, force: bool = False) -> Path:
    """Copy a recipe to a file or into a folder, and return where it went.

    An existing file is left alone unless ``force``; whatever happens, it is never half written.
    """
    recipe = get_recipe(name)
    suffix = recipe.path.suffix
    target = Path(destination).expanduser()
    if target.is_dir():
        target = target / recipe.path.name
    target = target if target.suffix or is_stream(target) else target.with_suffix(suffix)
    if not is_stream(target) and target.suffix != suffix and {target.suffix, suffix} != {".yaml", ".yml"}:
        raise UsageError(f"{name} is a {suffix} file, {str(target)!r} is not: end its name in {suffix}")
    if is_taken(target) and not force:
        raise UsageError(f"{str(target)!r} exists: choose another name, or overwrite it with --force")
    try:
        write_whole(target, lambda beside: shutil.copyfile(recipe.path, beside))
    except OSError as error:
        raise UsageError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    return target
