"""Weights from a file into a network, or a message that says why they do not fit."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_effnn._lookup import VARIABLE, find_file


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
    wanted = net.state_dict()
    # Batch norm counts its batches since torch 0.4.1; weights published earlier have no counter.
    state = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")} | state
    if problems := _differences(state, wanted):
        raise ValueError(f"weights={str(weights)!r} do not fit {type(net).__name__}: {'. '.join(problems)}")
    net.load_state_dict(state)


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


def _differences(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Keys that one has and the other has not, and shapes that differ."""
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the network"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    found = {"missing in the file": missing, "not in the network": unexpected, "other shapes": shapes}
    return [f"{what}: {_few(names)}" for what, names in found.items() if names]


def _few(names: list[str], most: int = 6) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
