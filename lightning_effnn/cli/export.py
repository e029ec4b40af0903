"""``effnn export``: a file that a runtime executes in integers, of a ready checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from lightning_effnn import deploy
from lightning_effnn._files import is_taken
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.attack import load_batches
from lightning_effnn.cli.compress import load_checkpoint
from lightning_effnn.cli.profile import load_model
from lightning_effnn.quantization import PRESETS, QuantizationPlan

_BATCH = 64


def export(
    checkpoint: str,
    *,
    model: str,
    network: str | None,
    data: str,
    plan: str,
    output: str,
    limit: int,
    force: bool,
    console: Console,
) -> None:
    """Calibrate, write ``output``, run it and print how it compares with the model."""
    if is_taken(output) and not force:
        raise UsageError(f"{output} exists: choose another name, or --force to replace it")
    if limit < 1:
        raise UsageError(f"--limit {limit}: use a whole number of at least 1")
    net = load_model(model)
    if note := load_checkpoint(checkpoint, net, network):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    try:
        if plan not in PRESETS and not Path(plan).is_file():
            raise ValueError(f"--plan {plan}: there is no such file, and the plans by name are {', '.join(PRESETS)}")
        bits = plan if plan in PRESETS else QuantizationPlan.load(plan)
        batches = list(_some(load_batches(data, part="fit"), limit))
        if not batches:
            raise ValueError(f"{data} holds no inputs to find ranges from")
        example = batches[0] if isinstance(batches[0], Tensor) else batches[0][0]
        prepared = deploy.calibrate_(deploy.prepare(net, example, bits), batches)
        report = deploy.to_onnx(prepared, example, output)
        checked = deploy.check(output, prepared, batches, limit=4)
    except OSError as error:
        raise UsageError(f"{error.filename or output}: {error.strerror or error}") from error
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(str(error)) from error
    console.print(f"{report}\n{checked}", markup=False, highlight=False, soft_wrap=True)


def _some(batches: Iterable[Any], limit: int) -> Iterator[Any]:
    """The first ``limit`` inputs, in batches of at most 64; labels are left out."""
    for batch in batches:
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        yield from (part for part in inputs[:limit].split(_BATCH) if len(part))
        limit -= len(inputs)
        if limit <= 0:
            return
