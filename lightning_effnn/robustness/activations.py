"""Seeing what goes into the layers of a model, and leaving the model as it was."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_effnn._threads import kept
from lightning_effnn._torch import in_checkpoint, in_reentrant_checkpoint
from lightning_effnn.quantization import activation_sites

_HOOKING = threading.Lock()
"""Hooks are numbered by a plain counter: two threads that put in theirs at once could get one number for both."""
_REENTRANT = (
    "layer {!r} runs inside a reentrant gradient checkpoint, where activations have no gradient and penalties on them "
    "would train nothing; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
)
_NORMALISED_AGAIN = (
    "batch norm inside a gradient checkpoint is computed again in the backward pass, by statistics of the whole batch "
    "in place of those of its natural inputs; leave batch norm, or the whole part, out of the checkpoint"
)


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
        sites = {site.name: site.module for site in activation_sites(model, frozen=True)}
        if names is not None:
            sites = {name: sites[name] for name in names}
        if not sites:
            raise ValueError(f"{type(model).__name__} has no layer with weights whose inputs could be looked at")
        self._modules = sites
        self.names = tuple(sites)

    @contextmanager
    def collecting(self) -> Iterator[dict[str, list[Tensor]]]:
        """Collect by layer what goes in, with its gradient, once a call of the layer by this thread.

        Raises:
            ValueError: where gradients are on, from a layer whose inputs have none because of reentrant checkpointing.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in self._modules}
        thread, differentiable = threading.get_ident(), torch.is_grad_enabled()

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[object, ...]) -> None:
                if not torch.compiler.is_dynamo_compiling() and threading.get_ident() != thread:
                    return
                if differentiable and not torch.is_grad_enabled() and in_reentrant_checkpoint():
                    raise ValueError(_REENTRANT.format(name))
                if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                    found[name].append(args[0])

            return hook

        with _HOOKING:
            handles = [module.register_forward_pre_hook(note(name)) for name, module in self._modules.items()]
        try:
            yield found
        finally:
            with _HOOKING:
                for handle in handles:
                    handle.remove()


@contextmanager
def as_deployed(model: nn.Module) -> Iterator[None]:
    """Run in eval mode with parameters that take no gradients; then every module and parameter is as it was.

    Batch norm uses its running statistics and leaves them alone: what an attacker meets is the model as deployed.
    Several threads may do so at once, and others run the model in eval mode meanwhile. Modes and parameters are shared:
    a thread that trains the model has to wait, or to be given a copy.
    """
    with kept(model.modules(), "training"), kept(model.parameters(), "requires_grad"):
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        yield


class _NaturalStatistics(TorchFunctionMode):
    def __init__(self, natural: int, inputs: int) -> None:
        super().__init__()
        self.natural, self.inputs = natural, inputs

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[object, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        given = inspect.signature(F.batch_norm).bind(*args, **kwargs)
        given.apply_defaults()
        if not given.arguments["training"]:  # frozen: its running statistics are the network's
            return F.batch_norm(**given.arguments)
        if in_checkpoint():
            raise ValueError(_NORMALISED_AGAIN)
        x, weight, bias = (given.arguments[name] for name in ("input", "weight", "bias"))
        if self.natural == self.inputs:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, given.arguments["eps"])
        ones = torch.ones(x.shape[1], device=x.device)
        weight = ones if weight is None else weight
        bias = torch.zeros_like(ones) if bias is None else bias
        return _normalised(x, weight, bias, len(x) * self.natural // self.inputs, given.arguments["eps"])


class _Normalised(torch.autograd.Function):
    """Batch norm by the statistics of the first rows, which gradients of all rows go into.

    The kernels of batch norm do nearly all of it: the first rows as in training, the others as in evaluation. What is
    left is what the others say of the statistics.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, natural: int, eps: float) -> Tensor:
        """Return ``x`` normalised."""
        first, mean, inverse = torch.native_batch_norm(x[:natural], weight, bias, None, None, True, 0.0, eps)
        variance = inverse.float().pow(-2) - eps
        rest = torch.native_batch_norm(x[natural:], weight, bias, mean, variance, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean, inverse, variance)
        ctx.natural, ctx.eps = natural, eps
        return torch.cat((first, rest))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of ``x``, weight and bias."""
        x, weight, mean, inverse, variance = ctx.saved_tensors
        kernel, natural = torch.ops.aten.native_batch_norm_backward, ctx.natural
        parts = gradients[0][:natural], gradients[0][natural:]
        wanted = [True, True, True]
        first, weight_1, bias_1 = kernel(
            parts[0], x[:natural], weight, None, None, mean, inverse, True, ctx.eps, wanted
        )  # fmt: skip
        rest, weight_2, bias_2 = kernel(
            parts[1], x[natural:], weight, mean, variance, None, None, False, ctx.eps, wanted
        )  # fmt: skip
        scale = inverse * weight / (first.numel() // first.shape[1])
        slope, shape = scale * weight_2 * inverse, (1, -1, *[1] * (x.dim() - 2))
        offset = slope * mean - scale * bias_2
        first.addcmul_(x[:natural], slope.view(shape).to(x.dtype), value=-1).add_(offset.view(shape).to(x.dtype))
        return torch.cat((first, rest)), weight_1 + weight_2, bias_1 + bias_2, None, None


_normalised = cast("Callable[[Tensor, Tensor, Tensor, int, float], Tensor]", _Normalised.apply)


@contextmanager
def natural_statistics(natural: int, inputs: int) -> Iterator[None]:
    """Normalise a batch whose first inputs are natural by the statistics of these, and leave running ones alone.

    Running statistics lag behind the weights: a penalty that is taken with them is lowered by weights that outrun them,
    and nothing is gained once they have caught up. Statistics of the crafted inputs themselves would hide what an
    attack does. Applies to batch norm of one to three dimensions that is in train mode.

    Args:
        natural: inputs at the beginning of the batch that the statistics are of, at least 1.
        inputs: of the batch.

    Raises:
        ValueError: from batch norm inside a gradient checkpoint.
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
