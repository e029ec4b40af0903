"""One call of a leaf module, counted as the simulator of the sponge paper counts it.

Source: Shumailov et al., "Sponge Examples: Energy-Latency Attacks on Neural Networks", arXiv
2006.03463, repository iliaishacked/sponge_examples, ``energy_estimator/analyse.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_effnn.hardware.tracing.storage import Count, StorageBook


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafCall:
    """One call of a module without children, for the batch as it was traced.

    A number is non-zero if its magnitude is above 2**-126. Values are looked at after the call, as a
    forward hook does, so an in-place module shows its output as its input.

    Attributes:
        name, type_name: qualified name and class name of the module.
        inputs_total, inputs_nonzero: elements of the tensors among the positional inputs.
        outputs_total, outputs_nonzero: elements of the tensors in the output.
        parameters_total, parameters_nonzero: elements of parameters and buffers; the running
            statistics of a ``BatchNorm2d`` twice, and for an ``Embedding`` also the rows it read, as in
            the paper's code.
        computations: the paper's count of operations; it ignores the groups of a convolution.
    """

    name: str
    type_name: str
    inputs_total: int
    inputs_nonzero: int
    outputs_total: int
    outputs_nonzero: int
    parameters_total: int
    parameters_nonzero: int
    computations: int


@dataclass(slots=True)
class LeafDraft:
    """A leaf call whose counts are still on their devices."""

    name: str
    type_name: str
    inputs: list[Count]
    outputs: list[Count]
    parameters: list[Count]
    computations: int

    def finish(self) -> LeafCall:
        """The call with plain numbers."""
        numbers: dict[str, int] = {}
        for field in ("inputs", "outputs", "parameters"):
            counts: list[Count] = getattr(self, field)
            numbers[f"{field}_total"] = sum([c.total for c in counts])
            numbers[f"{field}_nonzero"] = sum([int(c.nonzero) for c in counts])
        return LeafCall(name=self.name, type_name=self.type_name, computations=self.computations, **numbers)


def is_leaf(module: nn.Module) -> bool:
    """Whether ``module`` has no children; parametrizations are part of the module."""
    return all(name == "parametrizations" for name, child in module._modules.items() if child is not None)


def measure(name: str, module: nn.Module, args: tuple[Any, ...], output: Any, book: StorageBook) -> LeafDraft:
    """Count one call of a leaf module."""
    inputs, outputs = _tensors(args), _tensors(output)
    parameters = _counts(_owned(module), book)
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
        parameters += _counts([module.running_mean, module.running_var], book)
    if isinstance(module, nn.Embedding) and inputs and outputs:
        rows = _counts(outputs[:1], book)
        parameters += [Count(c.nonzero, module.embedding_dim * inputs[0].numel()) for c in rows]
    return LeafDraft(
        name,
        type(module).__name__,
        _counts(inputs, book),
        _counts(outputs, book),
        parameters,
        _computations(module, inputs, outputs) if inputs and outputs else 0,
    )


def _owned(module: nn.Module) -> list[Tensor]:
    """Buffers and parameters, each once."""
    if module._modules:
        return [*module.buffers(), *module.parameters()]
    # The same of a module without children, in a fraction of the time.
    owned = [t for t in (*module._buffers.values(), *module._parameters.values()) if t is not None]
    return list({id(tensor): tensor for tensor in owned}.values())


def _computations(module: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    source, result = inputs[0], outputs[0]
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return result.numel() * height * width * module.in_channels
    if isinstance(module, nn.Linear):
        return module.weight.numel() * (source.numel() // max(1, source.size(-1)))
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        size = module.kernel_size
        return result.numel() * (size**2 if isinstance(size, int) else size[0] * size[1])
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return source.numel()
    if isinstance(module, nn.BatchNorm2d):
        return 4 * source.numel()
    return 0


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def _counts(tensors: list[Any], book: StorageBook) -> list[Count]:
    counts = []
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or is_lazy(tensor):
            continue
        count = book.count(tensor)
        if count is None:
            counts.append(Count(tensor.numel(), tensor.numel()))
        else:  # an expanded tensor is stored once but handed over whole
            share = tensor.numel() // max(1, count.total) if tensor.layout is torch.strided else 1
            counts.append(Count(count.nonzero * share, count.total * share) if share > 1 else count)
    return counts
