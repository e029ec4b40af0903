"""``effnn inspect`` and ``effnn decompress``: what a compressed file holds, and its tensors as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from lightning_effnn._files import is_taken, write_figure, write_whole
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.compression.artifact import inspect_compressed, load_compressed, read_info
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.size_report import CompressionReport, TensorSize

_MOST_BARS = 200  # levels drawn one by one; beyond, they are counted in bins
_MOST_PANELS = 24
_COLUMNS = 3


def inspect(path: str, *, console: Console, plot: str | None = None) -> None:
    """Print what each tensor is stored as and takes; with ``plot``, draw the non-zero values of the largest."""
    try:
        report, state = inspect_compressed(path)
        metadata = read_info(path).metadata
    except (ArtifactError, OSError) as error:
        raise UsageError(str(error)) from error
    console.print(report.table())
    for key, value in metadata.items():
        console.print(f"{key}: {value}", markup=False, soft_wrap=True)
    if plot:
        try:
            figure = level_figure(report, state)
            write_figure(Path(plot).expanduser(), figure)
        except (OSError, ImportError, ValueError) as error:
            raise UsageError(str(error)) from error
        console.print(f"figure: {plot}", markup=False, soft_wrap=True)


def decompress(path: str, output: str, *, force: bool = False) -> str:
    """Write the tensors of a compressed file as a plain safetensors state dict; return a line that says so.

    An existing file is left alone unless ``force``; whatever happens, it is never half written.
    """
    target = Path(output).expanduser()
    if is_taken(target) and not force:
        raise UsageError(f"{str(target)!r} exists: choose another name, or overwrite it with --force")
    try:
        state, metadata = load_compressed(path), dict(read_info(path).metadata)
    except (ArtifactError, OSError) as error:
        raise UsageError(str(error)) from error
    # safetensors refuses tensors that share memory: each tied one is written out.
    whole = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    try:
        size = write_whole(target, lambda beside: save_file(whole, beside, metadata={"format": "pt", **metadata}))
    except OSError as error:
        raise UsageError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    return f"{len(state)} tensors, {size:,} bytes: {target}"


def level_figure(report: CompressionReport, state: Mapping[str, Tensor]) -> Any:
    """Histograms of the non-zero values of tensors of two or more dimensions; a matplotlib ``Figure``.

    Of more than 24 tensors, the largest are drawn.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
        ValueError: there is no such tensor.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'lightning_effnn[plots]'") from error
    drawn = [t for t in report.tensors if len(t.shape) > 1 and t.elements and not t.tied_to]
    largest = sorted(drawn, key=lambda t: -t.elements)[:_MOST_PANELS]
    drawn = [t for t in drawn if t in largest and state[t.name].is_floating_point()]
    if not drawn:
        raise ValueError(f"{report.path} has no floating-point tensor of two or more dimensions to draw")
    rows = -(-len(drawn) // _COLUMNS)
    columns = min(_COLUMNS, len(drawn))
    figure = Figure(figsize=(4.2 * columns, 0.8 + 2.4 * rows), layout="constrained")
    figure.suptitle(f"{report.path.name}: {report.bytes:,} bytes, {report.ratio:,.1f} times smaller than fp32")
    for axes, tensor in zip(figure.subplots(rows, columns, squeeze=False).flat, drawn, strict=False):
        _draw_levels(axes, tensor, state[tensor.name])
    for axes in list(figure.axes)[len(drawn) :]:
        axes.set_visible(False)
    return figure


def _draw_levels(axes: Any, tensor: TensorSize, values: Tensor) -> None:
    """Bars at the levels that occur, or bins where there are many."""
    flat = values.detach().double().flatten().numpy()
    flat = flat[np.isfinite(flat) & (flat != 0)]
    levels, counts = np.unique(flat, return_counts=True)
    if levels.size > _MOST_BARS:
        axes.hist(flat, bins=80, color="tab:blue")
    elif levels.size:
        axes.vlines(levels, 0, counts, color="tab:blue", linewidth=2)
        axes.plot(levels, counts, "o", color="tab:blue", markersize=3)
        axes.axvline(0, color="lightgrey", linewidth=1, zorder=0)
        axes.set_ylim(bottom=0)
    axes.set_title(
        f"{tensor.name}\n{tensor.format}, {tensor.sparsity:.1%} zeros, {tensor.bits_per_weight:.3f} bits a weight",
        fontsize=8,
        loc="left",
    )
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
