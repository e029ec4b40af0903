"""Does the file compute what the model computes, and how fast?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_effnn.deploy.export import float_onnx
from lightning_effnn.deploy.prepared import Prepared
from lightning_effnn.deploy.runtime import Session, integer_share, milliseconds_in_turns


class Timing(NamedTuple):
    """How long one run takes, on one thread of this machine.

    Attributes:
        batch: inputs a run.
        milliseconds: median of the file's runs.
        float_milliseconds: median of those of the same network in float32, batch norms folded, in turns with them.
        ratio: median of the quotients of two runs in turn.
        quartiles: of the quotients.
    """

    batch: int
    milliseconds: float
    float_milliseconds: float
    ratio: float
    quartiles: tuple[float, float]


@dataclass(frozen=True)
class CheckReport:
    """How a file compares with the model that it was made of.

    Attributes:
        inputs: how many were compared.
        difference: root mean square of the difference of all outputs, over that of the model's outputs.
        top1_equal: share of inputs for which the largest element along axis 1 of the first output is the same;
            ``None`` if that output has fewer axes.
        integer_macs: share of multiply-accumulates that ran in integer kernels.
        bytes, float_bytes: size of the file, and of the same network in float32.
        timings: one for each batch size.
    """

    inputs: int
    difference: float
    top1_equal: float | None
    integer_macs: float
    bytes: int
    float_bytes: int
    timings: tuple[Timing, ...]

    def __str__(self) -> str:
        equal = "" if self.top1_equal is None else f", top-1 equal on {self.top1_equal:.2%}"
        lines = [
            f"{self.inputs} inputs: difference {self.difference:.2%} of the outputs' rms{equal}",
            f"{self.integer_macs:.1%} of multiply-accumulates in integer kernels; {self.bytes:,} bytes, "
            f"{self.float_bytes / self.bytes:.2f} times smaller than in float32",
        ]
        lines += [
            f"batch {t.batch}: {t.milliseconds:.2f} ms, {t.ratio:.2f} of float32's {t.float_milliseconds:.2f} ms "
            f"(quartiles {t.quartiles[0]:.2f} to {t.quartiles[1]:.2f})"
            for t in self.timings
        ]
        return "\n".join(lines)


@torch.no_grad()
def check(
    path: str | Path,
    model: Prepared,
    batches: Iterable[Any],
    *,
    limit: int | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 30,
) -> CheckReport:
    """Run an exported file in onnxruntime and compare it with the model that it was made of.

    Args:
        path: of :func:`~lightning_effnn.deploy.to_onnx`.
        model: the prepared model.
        batches: inputs, or tuples that begin with them, as a loader gives.
        limit: compare at most so many batches.
        batch_sizes: lengths of the batches that are timed, at most that of the first batch.
        repeats: of each timing.

    Raises:
        ImportError: onnxruntime is missing.
        TypeError: ``model`` isn't prepared.
        ValueError: there is no batch, or onnxruntime doesn't take the file.
    """
    if not isinstance(model, Prepared):
        raise TypeError(f"model must be the prepared model that was exported, got {type(model).__name__}")
    session, training = Session(path), model.training
    model.eval()
    try:
        first, comparison = None, _Comparison()
        for place, batch in enumerate(batches):
            if limit is not None and place >= limit:
                break
            inputs = model.inputs_of(batch)
            first = first or inputs
            comparison.add(_tensors(model(*inputs)), session.run(*inputs))
        if first is None:
            raise ValueError("batches must hold at least one batch to compare on, got none")
        in_float = float_onnx(model, first)
    finally:
        model.train(training)
    sizes = [size for size in batch_sizes if size <= len(first[0])]
    float_session = Session(in_float)
    return CheckReport(
        comparison.inputs,
        (comparison.error / max(comparison.power, 1e-30)) ** 0.5,
        comparison.equal / comparison.inputs if comparison.ranked else None,
        integer_share(path, *(x[:1] for x in first)),
        Path(path).stat().st_size,
        len(in_float),
        tuple(_timed(session, float_session, tuple(x[:size] for x in first), repeats) for size in sizes),
    )


class _Comparison:
    """Sums over batches."""

    def __init__(self) -> None:
        self.inputs = self.equal = 0
        self.error = self.power = 0.0
        self.ranked = False

    def add(self, expected: list[Tensor], found: list[Tensor]) -> None:
        for one, other in zip(expected, found, strict=True):
            self.error += float((one.double() - other.double()).square().sum())
            self.power += float(one.double().square().sum())
        self.inputs += len(expected[0])
        self.ranked = expected[0].dim() > 1
        if self.ranked:
            same = expected[0].argmax(1) == found[0].argmax(1)
            self.equal += int(same.flatten(1).all(1).sum() if same.dim() > 1 else same.sum())


def _tensors(outputs: Any) -> list[Tensor]:
    return [x.detach().cpu() for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


def _timed(session: Session, other: Session, inputs: tuple[Tensor, ...], repeats: int) -> Timing:
    mine, theirs = milliseconds_in_turns((session, other), inputs, repeats)
    ratios = [one / two for one, two in zip(mine, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    quartiles = (low, high)
    return Timing(len(inputs[0]), statistics.median(mine), statistics.median(theirs), middle, quartiles)
