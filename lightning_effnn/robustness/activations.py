"""Seeing what goes into the layers of a model, and leaving the model as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_effnn.quantization import activation_sites


class Activations:
    """The inputs of a model's layers with weights, collected while it runs.

    What a chip with support for zeros saves depends on these: a zero that goes into a layer is a multiplication less.

    Args:
        model: any module, initialised.
        names: of the layers, all with weights if None.

    Attributes:
        names: of the layers, in the order of the model's modules.

    Raises:
        ValueError: if the model has no such layer, or uninitialised lazy modules.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> activations = Activations(model)
    >>> with activations.collecting() as found:
    ...     _ = model(torch.rand(3, 4))
    >>> {name: tuple(x.shape) for name, (x,) in found.items()}
    {'0': (3, 4), '2': (3, 8)}
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        sites = {site.name: site.module for site in activation_sites(model)}
        if names is not None:
            sites = {name: sites[name] for name in names}
        if not sites:
            raise ValueError(f"{type(model).__name__} has no layer with weights whose inputs could be looked at")
        self._modules = sites
        self.names = tuple(sites)

    @contextmanager
    def collecting(self) -> Iterator[dict[str, list[Tensor]]]:
        """Collect by layer what goes in, with its gradient, once a call of the layer."""
        found: dict[str, list[Tensor]] = {name: [] for name in self._modules}

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                    found[name].append(args[0])

            return hook

        handles = [module.register_forward_pre_hook(note(name)) for name, module in self._modules.items()]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def as_deployed(model: nn.Module) -> Iterator[None]:
    """Run in eval mode with parameters that take no gradients; then every module and parameter is as it was.

    Batch norm uses its running statistics and leaves them alone: what an attacker meets is the model as deployed.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, needs in trained:
            parameter.requires_grad_(needs)


class _NaturalStatistics(TorchFunctionMode):
    def __init__(self, natural: int, inputs: int) -> None:
        super().__init__()
        self.natural, self.inputs = natural, inputs

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        given = inspect.signature(F.batch_norm).bind(*args, **kwargs)
        given.apply_defaults()
        x = given.arguments["input"]
        rows = x[: len(x) * self.natural // self.inputs].transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(rows, 1, correction=0)
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (variance + given.arguments["eps"]).rsqrt()
        if given.arguments["weight"] is not None:
            scale = scale * given.arguments["weight"]
        shift = -mean * scale if given.arguments["bias"] is None else given.arguments["bias"] - mean * scale
        return x * scale.view(shape).to(x.dtype) + shift.view(shape).to(x.dtype)


@contextmanager
def natural_statistics(natural: int, inputs: int) -> Iterator[None]:
    """Normalise a batch whose first inputs are natural by the statistics of these, and leave running ones alone.

    Running statistics lag behind the weights: a penalty that is taken with them is lowered by weights that outrun them,
    and nothing is gained once they have caught up. Statistics of the crafted inputs themselves would hide what an
    attack does. Applies to batch norm of one to three dimensions.

    Args:
        natural: inputs at the beginning of the batch that the statistics are of, at least 1.
        inputs: of the batch.
    """
    with _NaturalStatistics(natural, inputs):
        yield


def per_input(x: Tensor, inputs: int) -> Tensor:
    """Reshape to one row an input; ``[B * T, ...]`` of sequences or patches is folded back.

    Raises:
        ValueError: if the first axis is no multiple of the number of inputs.
    """
    if not inputs or len(x) % inputs:
        raise ValueError(f"a layer's input of shape {tuple(x.shape)} doesn't divide into {inputs} inputs of the model")
    return x.reshape(inputs, -1)


def density(x: Tensor, inputs: int) -> Tensor:
    """Return the share of numbers other than zero, one for each input: ``[inputs]``.

    >>> density(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 2)
    tensor([0.5000, 0.0000])
    """
    rows = per_input(x.detach(), inputs)
    return rows.ne(0).float().mean(1)
