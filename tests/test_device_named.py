"""Mechanisms say where the tensors lie that they make."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOSTS = ("lightning_effnn/cli", "lightning_effnn/data")
"""What works on the host throughout: it makes what a Trainer puts on a device."""
FACTORIES = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
OWNERS = {"register_buffer", "Parameter", "Buffer"}
"""What they are given moves with its module."""


def files():
    for folder in ("lightning_effnn", "callbacks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if not name.startswith(HOSTS) and file.name != "plots.py":
                yield name


def nowhere(source):
    """Line and name of each tensor that is made without saying where."""
    tree = ast.parse(source)
    owned = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node.func) in OWNERS
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in owned or not isinstance(node.func, ast.Attribute):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if of_torch and node.func.attr in FACTORIES and not any(k.arg in ("device", "out") for k in node.keywords):
            yield node.lineno, node.func.attr


def _name(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@pytest.mark.parametrize("name", list(files()))
def test_tensors_are_made_somewhere(name):
    found = [f"{name}:{line}: torch.{factory}(...)" for line, factory in nowhere((ROOT / name).read_text())]
    assert not found, (
        "say where a tensor is made: device=x.device (or x.new_tensor, x.new_zeros, torch.zeros_like(x)) beside the "
        'tensor x that it meets; device="cpu" for work on the host:\n' + "\n".join(found)
    )


def test_what_is_made_nowhere_is_found():
    source = """
x = torch.zeros(3)
y = torch.rand(3, generator=g).to(x)
self.register_buffer("z", torch.zeros(3))
self.w = nn.Parameter(torch.tensor([1.0]).log())
a, b = torch.ones(3, device=x.device), x.new_tensor(1.0)
"""
    assert list(nowhere(source)) == [(2, "zeros"), (3, "rand")]
