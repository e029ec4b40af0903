"""Weights from a file into a network, or a message that says why they do not fit."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lightning_effnn._lookup import VARIABLE, find_file
from lightning_effnn._prefixes import Wanted, describe_misfit


def load_weights_(net: nn.Module, weights: str | Path) -> None:
    """Load a safetensors state dict strictly; where it does not fit, ``net`` stays as it was.

    Args:
        net: any module.
        weights: path of the file, or its name in the folder that the variable ``EFFNN_DATA`` names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file, or its keys or shapes are not the network's; all are named.
    """
    path = _find(weights)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights={str(weights)!r}: {path} is not a safetensors file: {error}") from error
    wanted = Wanted.by(net)
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    if problems := describe_misfit(shapes, wanted, "network", prefix=""):
        raise ValueError(f"weights={str(weights)!r} do not fit {type(net).__name__}: {'. '.join(problems)}")
    counters = {name: x for name, x in net.state_dict().items() if name in wanted.optional}
    net.load_state_dict(counters | state)


def _find(weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    try:
        return find_file(str(path))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"weights={str(weights)!r}: no such file, here or in the folder that {VARIABLE} names. "
            f"Give the path of a safetensors file, or set {VARIABLE}."
        ) from None
