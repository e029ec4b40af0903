"""``effnn attack``: what the worst input costs a ready network."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.compress import load_checkpoint
from lightning_effnn.cli.hw import load_accelerator
from lightning_effnn.cli.profile import load_model, load_object
from lightning_effnn.robustness import evaluate

_FREE_BYTES, _MOST_RATIO = 1 << 28, 64  # what an archive may unpack to, and how many times its size beyond that


def attack(
    checkpoint: str,
    *,
    model: str,
    network: str | None,
    data: str,
    accelerator: str,
    attacks: Sequence[str],
    eps: str,
    steps: int,
    limit: int,
    seed: int,
    csv: str | None,
    plot: str | None,
    console: Console,
) -> None:
    """Print what natural and crafted inputs cost; write rows and a figure where they are wanted."""
    chip, largest = load_accelerator(accelerator), parse_eps(eps)
    if steps < 1 or limit < 1:
        raise UsageError(f"--steps {steps} --limit {limit}: use whole numbers of at least 1")
    net = load_model(model)
    if note := load_checkpoint(checkpoint, net, network):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    batches = load_batches(data)
    try:
        report = evaluate(net, batches, chip, attacks, largest, limit, steps, seed=seed)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    console.print(report.table())
    try:
        if csv:
            report.to_csv(csv)
            console.print(f"rows: {csv}", soft_wrap=True)
        if plot:
            report.plot(plot)
            console.print(f"figure: {plot}", soft_wrap=True)
    except (OSError, ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def parse_eps(text: str) -> float | None:
    """Read ``--eps``: a number, a fraction, or ``none`` for attacks that may go anywhere.

    >>> parse_eps("8/255"), parse_eps("0.25"), parse_eps("none")
    (0.03137, 0.25, None)
    """
    if text == "none":
        return None
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not value > 0:
        raise UsageError(f"--eps {text}: use a number above 0, such as 0.03 or 8/255, or none")
    return value


def load_batches(data: str, part: Literal["fit", "test"] = "test") -> Iterable[Any]:
    """Return batches of inputs, with labels where there are some: of a file, or of what ``module:name`` gives.

    A file is ``.npz`` or ``.safetensors``: floating-point inputs ``[N, ...]``, and labels, integers ``[N]``, if it has
    them. A name is of a ``LightningDataModule``, whose test or training data are taken, or of a loader, or of what
    returns one.
    """
    if data.endswith((".npz", ".safetensors")):
        return _from_file(data)
    wanted = (
        "a .npz or .safetensors file, or module:name of a DataModule, such as lightning_effnn.data:DigitsDataModule"
    )
    found = load_object(data, L.LightningDataModule, wanted)
    if isinstance(found, L.LightningDataModule):
        try:
            found.prepare_data()
            found.setup(part)
            found = found.test_dataloader() if part == "test" else found.train_dataloader()
        except (ValueError, OSError, ImportError) as error:
            raise UsageError(f"{data}: {error}") from error
    if not isinstance(found, Iterable):
        raise UsageError(f"{data!r} gives a {type(found).__name__}: it has to be or return a DataModule or a loader")
    return found


def _refuse_much_from_little(path: str) -> None:
    """Refuse an archive whose arrays are out of all proportion to it: it may be a few kilobytes that unpack to all."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    if unpacked > _FREE_BYTES + _MOST_RATIO * Path(path).stat().st_size:
        raise ValueError(f"{unpacked:,} bytes in one of {Path(path).stat().st_size:,}; save it by numpy.savez instead")


def _from_file(path: str) -> list[Any]:
    if not Path(path).is_file():
        raise UsageError(f"data {path!r} does not exist")
    try:
        if path.endswith(".npz"):
            _refuse_much_from_little(path)
            with np.load(path, allow_pickle=False) as file:
                tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            tensors = load_file(path)
    except (SafetensorError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read as arrays alone: {error}") from error
    inputs = [(name, x) for name, x in tensors.items() if x.is_floating_point() and x.dim() > 1]
    if len(inputs) != 1:
        names = ", ".join(f"{name} {tuple(x.shape)} {x.dtype}" for name, x in tensors.items())
        raise UsageError(f"{path} holds {names or 'nothing'}: one floating-point array of inputs [N, ...] is needed")
    x: Tensor = inputs[0][1].float()
    labels = [y.long() for y in tensors.values() if y.shape == x.shape[:1] and not y.is_floating_point()]
    return [(x, labels[0]) if labels else x]
