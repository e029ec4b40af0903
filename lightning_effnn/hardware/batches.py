"""Whether the cost of one inference depends on the batch in which it was traced: a check for any network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn._random import random_state_kept
from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.cost import estimate
from lightning_effnn.hardware.report import CostReport
from lightning_effnn.hardware.trace import Trace, trace
from lightning_effnn.hardware.tracing.batch import Batch, graph_data_of, inspect_batch, samples_of
from lightning_effnn.hardware.tracing.run import named_arguments

EQUAL = 1e-3
"""Relative difference up to which figures count as equal."""
_NAMED = 5


@dataclass(frozen=True)
class BatchCheck:
    """The cost of one inference, traced in batches of several sizes.

    Attributes:
        figures: multiply-accumulates, energy, traffic and size of the weights, by the batch's size.
        modules: by how much the energy of a module differs between the batches, as a share of the network's, where
            that is more than 0.1 %.
        notes: what the traces say of themselves.
    """

    figures: Mapping[int, Mapping[str, float]]
    modules: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> dict[str, float]:
        """The largest difference of each figure from that of the smallest batch, relative to it."""
        first, *others = (self.figures[size] for size in sorted(self.figures))
        return {name: max((_apart({name: other[name]}, first) for other in others), default=0.0) for name in first}

    @property
    def agrees(self) -> bool:
        """Whether every figure is equal to 0.1 % in all batches."""
        return all(value <= EQUAL for value in self.differences.values())

    def __str__(self) -> str:
        sizes = ", ".join(map(str, sorted(self.figures)))
        if self.agrees:
            return f"in batches of {sizes} copies of the first sample one inference costs the same (to {EQUAL:.1%})"
        apart = ", ".join(f"{name} by {value:.1%}" for name, value in self.differences.items() if value > EQUAL)
        names = [name or "the model itself" for name in self.modules]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        where = f", in {', '.join(names[:_NAMED])}{more}" if names else ""
        return (
            f"in batches of {sizes} copies of the first sample the cost of one inference differs: {apart}{where};"
            f" that of a batch of {min(self.figures)} is the surest"
        )


def check_batches(
    model: nn.Module,
    *inputs: Any,
    sizes: Sequence[int] = (1, 2, 3, 5),
    accelerator: Accelerator | str = "eyeriss_like",
    batch_dim: int | None = None,
    inferences: int | None = None,
    **kwargs: Any,
) -> BatchCheck:
    """Trace a model in batches of several sizes and say whether one inference costs the same in each.

    The batches are copies of the first sample of the one that is given; whatever has the batch's extent where the
    batch lies is taken to go along with it. A network whose cost depends on the batch is either read wrongly or
    makes inferences depend on each other, as experts with a capacity do.

    Args:
        model: any module; it runs in eval mode.
        inputs, kwargs: a batch, as the model is called with it.
        sizes: of the batches.
        accelerator: the chip whose energy is compared.
        batch_dim: axis of the batch in the inputs; found if ``None``.
        inferences: how many inferences the inputs hold; found if ``None``.

    Raises:
        ValueError: if ``sizes`` are not two or more different integers of at least 1, no batches can be made of the
            inputs, or the model doesn't run on one of them.

    Example:
        >>> check_batches(nn.Linear(4, 3), torch.ones(8, 4)).agrees
        True
    """
    if len(set(sizes)) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"sizes={sizes!r}: two or more different batch sizes of at least 1 are needed")
    example = named_arguments(model, inputs, kwargs)
    batch = inspect_batch(example, batch_dim, inferences)
    graph = graph_data_of(example)
    _refuse_what_cannot_be_copied(batch, graph)
    samples = samples_of(example) if batch.samples else ()
    reports: dict[int, CostReport] = {}
    for n in sorted(set(sizes)):
        args, named = _copies((inputs, kwargs), _Given(batch, samples, graph), n)
        said = {"batch_dim": batch_dim, "inferences": None if inferences is None else n}
        traced = _traced(model, args, named | said, n, seed=0)
        if traced.traced_batch_size not in (n, None):
            raise ValueError(
                f"what was meant as {n} inferences the model takes for {traced.traced_batch_size}: say batch_dim, and"
                " inferences where they are not as many as that axis has rows"
            )
        reports[n] = estimate(traced, accelerator)
    notes = sorted({note for report in reports.values() for note in report.notes})
    again = estimate(_traced(model, args, named | said, n, seed=1), accelerator)
    if _apart(_figures(again), _figures(reports[n])) > EQUAL:
        notes.insert(0, f"the model draws random numbers: two batches of {n} differ as well, by what was drawn")
    return BatchCheck({n: _figures(report) for n, report in reports.items()}, _modules(reports), tuple(notes))


def _traced(model: nn.Module, args: Any, options: dict[str, Any], size: int, seed: int) -> Trace:
    with random_state_kept(t.device for t in model.parameters()):
        torch.manual_seed(seed)
        try:
            return trace(model, *args, **options)
        except Exception as error:  # of whatever kind the model's own code raises
            raise ValueError(
                f"the model doesn't run on a batch of {size} copies of the first sample: {error}; call"
                " hardware.check_batches with sizes that it takes"
            ) from error


def _apart(figures: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """The largest difference, relative to the reference."""
    return max(abs(value - reference[name]) / (abs(reference[name]) or 1.0) for name, value in figures.items())


def _figures(report: CostReport) -> dict[str, float]:
    return {
        "macs": report.macs,
        "energy_uJ": report.energy_uJ,
        "dram_kB": report.dram_kB,
        "weights_kB": report.weights_kB,
    }


def _modules(reports: Mapping[int, CostReport]) -> dict[str, float]:
    """Modules whose energy is not the same in all batches, those that differ most first."""
    energies: dict[str, dict[int, float]] = {}
    for n, report in reports.items():
        for layer in report.layers:
            name, energy = layer.operation.name, float(layer.cost.energy_pJ) * layer.operation.repeats
            energies.setdefault(name, dict.fromkeys(reports, 0.0))[n] += energy
    whole = reports[min(reports)].energy_uJ * 1e6 or 1.0
    apart = {name: (max(of.values()) - min(of.values())) / whole for name, of in energies.items()}
    return {name: apart[name] for name in sorted(apart, key=lambda name: -apart[name]) if apart[name] > EQUAL}


@dataclass(frozen=True)
class _Given:
    """What was found in the inputs: the batch's axes, a list of samples, a batch of graphs."""

    batch: Batch
    samples: Sequence[Any]
    graph: Any


def _refuse_what_cannot_be_copied(batch: Batch, graph: Any) -> None:
    if batch.size is None or (batch.graph and not hasattr(graph, "num_graphs")):
        raise ValueError("the inputs hold no batch: there is nothing to compare")
    sizes = {label.size for _, _, label in batch.axes}
    uneven = len(sizes) > 1 or any(t.is_nested for t, _, _ in batch.axes) or any(size % batch.size for size in sizes)
    if graph is None and not batch.samples and uneven:
        raise ValueError(
            "no batches can be made of these inputs, whose samples have unequal sizes: trace batches of several sizes"
            " and compare what estimate says of them"
        )


def _copies(value: Any, given: _Given, n: int) -> Any:
    """The same inputs with ``n`` copies of the first sample."""
    if value is given.graph and value is not None:
        return type(value).from_data_list([value.get_example(0)] * n)
    if isinstance(value, Tensor):
        return _repeated(value, given.batch, n)
    if value is given.samples and given.samples:
        return [value[0]] * n
    if isinstance(value, Mapping):
        same = {key: _copies(item, given, n) for key, item in value.items()}
        return same if type(value) is dict else type(value)(same)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copies(item, given, n) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_copies(item, given, n) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value) if part.init}
        return dataclasses.replace(value, **{name: _copies(item, given, n) for name, item in parts.items()})
    return value


def _repeated(tensor: Tensor, batch: Batch, n: int) -> Tensor:
    for known, dim, label in batch.axes:
        if known is tensor:
            return torch.cat([tensor.narrow(dim, 0, label.size // (batch.size or 1))] * n, dim)
    return tensor
