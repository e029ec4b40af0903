"""Run a model once inside a tracer with nothing hidden, and leave it as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_effnn._random import random_state_kept


def run_once(
    tracer: AbstractContextManager[Any],
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: bool,
    loss: Callable[[Any], Tensor] | None,
) -> None:
    """Run forward, or with ``training`` forward and backward, inside ``tracer``."""
    with ExitStack() as stack:
        if not training:
            stack.enter_context(_evaluating(model))
            stack.enter_context(torch.no_grad())
            stack.enter_context(tracer)
            output = model(*inputs, **kwargs)
            if loss is not None:
                loss(output)
            return
        stack.enter_context(_restored(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(tracer)
        output = model(*inputs, **kwargs)
        objective = _total(output) if loss is None else loss(output)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not objective.requires_grad or not parameters:
            raise ValueError("training=True needs a parameter with requires_grad that the output depends on")
        # Not backward(): the gradients are thrown away, the parameters' own stay as they are.
        try:
            torch.autograd.grad(objective, parameters, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            raise ValueError(
                "training=True can't follow reentrant checkpointing, whose backward pass only runs in backward():"
                " use torch.utils.checkpoint with use_reentrant=False, or enter a Tracer around a training step"
            ) from error


def _total(output: Any) -> Tensor:
    parts = [t.sum() for t in _tensors(output) if t.is_floating_point() and t.requires_grad]
    if not parts:
        raise ValueError("training=True needs an output with a gradient, or a loss; this output has none")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    with suppress(NotImplementedError):  # an exported program has its mode built in, and refuses to change it
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with random_state_kept(t.device for t in model.parameters()):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def check_initialised(model: nn.Module) -> None:
    """Refuse a model whose parameters have no shapes yet."""
    lazy = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if any(is_lazy(p) for p in module.parameters(recurse=False))
    ]
    if lazy:
        raise ValueError(
            f"the model has lazy modules that are not initialised ({', '.join(lazy)}): run one batch through it first"
        )


def named_arguments(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call by the names that the model gives them, in their order."""
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind(*inputs, **kwargs)
    except (TypeError, ValueError):
        return (inputs, kwargs)  # it has no signature, or the call will fail and say why
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:  # several arguments, no list
            named |= {f"{name}[{i}]": one for i, one in enumerate(value)}
        else:
            named[name] = value
    return named
