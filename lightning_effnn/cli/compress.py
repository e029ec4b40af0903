"""``effnn compress``: prune, focus and encode a ready checkpoint, without training."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_effnn._files import is_taken
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.profile import load_model
from lightning_effnn.compression import focus_model_, prune_model_, save_compressed
from lightning_effnn.compression.finish import Other


def compress(
    checkpoint: str,
    *,
    model: str,
    output: str,
    bits: int,
    sparsity: float,
    other: Other,
    force: bool,
    console: Console,
) -> None:
    """Write ``output`` and print what each layer became."""
    if is_taken(output) and not force:
        raise UsageError(f"{output} exists: choose another name, or --force to replace it")
    network = load_model(model)
    load_checkpoint(checkpoint, network)
    try:
        if sparsity:
            prune_model_(network, sparsity)
        focus_model_(network, bits=bits)
        report = save_compressed(network, output, other=other)
    except ValueError as error:
        raise UsageError(str(error)) from error
    console.print(str(report), markup=False, highlight=False)


def load_checkpoint(path: str, model: nn.Module) -> None:
    """Load ``.safetensors``, ``.ckpt`` or ``.pt`` weights strictly; nothing in it is executed.

    The state of a LightningModule that holds the model under a name (``net.conv1.weight``) is taken as the model's.
    """
    state = _read(path)
    # Batch norm counts its batches since torch 0.4.1: of weights published earlier the model keeps its own count.
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    expected = set(model.state_dict())
    found_by = sorted(expected - set(counters))[:1]
    prefixes = {""} | {key[: key.rindex(name)] for key in state for name in found_by if key.endswith(name)}
    for prefix in sorted(prefixes, key=len):
        inner = counters | {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if expected <= set(inner):
            try:
                model.load_state_dict({key: inner[key] for key in expected})
            except RuntimeError as error:
                raise UsageError(f"{path} does not fit the model: {error}") from error
            return
    missing = sorted(expected - set(state) - set(counters))
    raise UsageError(
        f"{path} does not fit the model: it has no {', '.join(missing[:5])}" + (" ..." if missing[5:] else "")
    )


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise UsageError(f"checkpoint {path!r} does not exist")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as weights alone: {str(error).splitlines()[0]}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no state_dict: tensors by name are needed")
    return dict(state)
