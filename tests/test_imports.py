"""Arrows point one way: what each part of the package may import of the others."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = {"compression", "search", "robustness", "deploy"}  # never each other
SHARED = {"formats", "hardware", "quantization"}
MECHANISMS = SHARED | METHODS | {"pde"}
ALLOWED = {
    "formats": set(),
    "hardware": {"formats"},
    "quantization": {"formats"},
    **dict.fromkeys(METHODS, SHARED),
    "pde": set(),
    "data": set(),
    "modules": MECHANISMS,
    "callbacks": MECHANISMS | {"modules"},
    "recipes": MECHANISMS | {"modules", "data", "callbacks"},
    "cli": MECHANISMS | {"modules", "data", "callbacks", "recipes"},
}
FOLDERS = {p: ROOT / p if p in ("callbacks", "recipes") else ROOT / "lightning_effnn" / p for p in ALLOWED}


def imported(file: Path):
    """Every absolute dotted name that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_part_imports_only_what_is_below_it(part):
    for file in FOLDERS[part].rglob("*.py"):
        for name in imported(file):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package == "lightning_effnn" and other in ALLOWED and other != part:
                assert other in ALLOWED[part], f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("part", sorted(MECHANISMS))
def test_mechanisms_are_plain_pytorch(part):
    for file in FOLDERS[part].rglob("*.py"):
        frameworks = {name.partition(".")[0] for name in imported(file)} & {"lightning", "pytorch_lightning"}
        assert not frameworks, f"{file.relative_to(ROOT)} imports {frameworks}"


def test_no_relative_imports_hide_an_arrow():
    for folder in FOLDERS.values():
        for file in folder.rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            relative = [n.lineno for n in nodes if isinstance(n, ast.ImportFrom) and n.level]
            assert not relative, f"{file.relative_to(ROOT)}: relative import in lines {relative}"


def test_every_package_is_under_a_rule():
    packages = {p.parent.name for p in (ROOT / "lightning_effnn").glob("*/__init__.py")}
    assert packages <= set(ALLOWED)
