"""``effnn profile``: what one inference of any model costs on an accelerator."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_effnn import hardware
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.hw import load_accelerator


@dataclass(frozen=True)
class InputSpec:
    """Shape, type and range of one input, written ``1,3,224,224``, ``1,128:int64`` or ``2,40:int64:10``.

    Floating-point inputs are normal, integers uniform below the range (2 unless given), Booleans true.

    >>> InputSpec.parse("1,128:int64:30000")
    InputSpec(shape=(1, 128), dtype=torch.int64, below=30000)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    below: int = 2

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read one ``--input``."""
        sizes, *rest = text.split(":")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
            below = int(rest[1]) if len(rest) > 1 else 2
        except ValueError:
            shape, below = (), 0
        if not shape or min(shape) < 0 or below < 1 or len(rest) > 2:
            raise UsageError(
                f"--input {text!r}: write sizes, then a type, then what integers stay below, "
                "such as 1,3,224,224 or 1,128:int64 or 1,128:int64:30000"
            )
        return cls(shape, parse_dtype(rest[0], "--input") if rest else None, below)

    def draw(self, floating: torch.dtype) -> Tensor:
        """Draw a random tensor; without a type of its own it is ``floating``."""
        dtype = self.dtype or floating
        if dtype == torch.bool:
            return torch.ones(self.shape, dtype=dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(self.shape).to(dtype)
        return torch.randint(0, self.below, self.shape, dtype=dtype)


def profile(
    target: str,
    *,
    inputs: Sequence[str],
    accelerator: str,
    console: Console,
    batch_size: int = 1,
    dtype: str | None = None,
    depth: int = 2,
    csv: str | None = None,
    plot: str | None = None,
) -> None:
    """Trace ``target`` on one batch and print what it costs, by module and in all."""
    chip = load_accelerator(accelerator)
    specs = [InputSpec.parse(text) for text in inputs]
    floating = parse_dtype(dtype, "--dtype") if dtype else None
    if batch_size < 1 or depth < 1:
        raise UsageError(f"--batch-size {batch_size} --depth {depth}: use whole numbers of at least 1")
    model = load_model(target).eval()
    _refuse_lazy(model, target)
    if floating is not None:
        model.to(floating)
    torch.manual_seed(0)
    batch = make_batch(model, specs)
    report = hardware.estimate(hardware.trace(model, *batch, batch_size=batch_size), chip)
    console.print(report.table(depth))
    if report.unknown:
        console.print(f"counted by elements moved only: {', '.join(report.unknown)}")
    try:
        if csv:
            report.to_csv(csv)
            console.print(f"rows: {csv}", soft_wrap=True)
        if plot:
            report.plot(plot, depth=depth)
            console.print(f"figure: {plot}", soft_wrap=True)
    except (OSError, ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def load_model(target: str) -> nn.Module:
    """Import ``module:name`` and return the model it is or, called without arguments, returns."""
    found = load_object(target, nn.Module, "a model as module:name, such as mypkg.models:build")
    if not isinstance(found, nn.Module):
        raise UsageError(f"{target!r} gives a {type(found).__name__}: it has to be or return a torch.nn.Module")
    return found


def load_object(target: str, kind: type, wanted: str) -> Any:
    """Import ``module:name``; call it without arguments if it is no ``kind`` and can be called.

    Args:
        target: what the user typed.
        kind: of an object that is taken as it is.
        wanted: what to name instead, for the message.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{target!r}: name {wanted}")
    found: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{target!r}: {module_name} has no {attribute!r}")
        found = getattr(found, part)
    if not isinstance(found, kind) and callable(found):
        _refuse_required_arguments(found, target)
        found = found()
    return found


def make_batch(model: nn.Module, specs: Sequence[InputSpec]) -> tuple[Any, ...]:
    """Return the inputs of one call: drawn by ``specs``, else the model's ``example_input_array``."""
    example = getattr(model, "example_input_array", None)
    if not specs and example is None:
        raise UsageError(
            "no example batch: give the shape of each input, such as --input 1,3,224,224, "
            "or set example_input_array in your LightningModule"
        )
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if specs:
        batch: tuple[Any, ...] = tuple(spec.draw(floating) for spec in specs)
    elif isinstance(example, Mapping):
        batch = _positional(model, example)
    else:
        batch = tuple(example) if isinstance(example, list | tuple) else (example,)
    tensors = [x for x in batch if isinstance(x, Tensor)]
    if any(x.numel() == 0 for x in tensors):
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise UsageError(f"empty batch: the inputs have shapes {shapes}; every size has to be at least 1")
    if specs:
        return batch
    return tuple(x.to(floating) if isinstance(x, Tensor) and x.is_floating_point() else x for x in batch)


def parse_dtype(name: str, option: str) -> torch.dtype:
    """Return torch's type of that name."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"{option}: torch has no type {name!r}; use float32, bfloat16, int64, bool or another")
    return dtype


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise  # the module is there; something that it imports is not
        raise UsageError(
            f"no module named {name!r}: run effnn in the folder it is in, or install its package"
        ) from error


def _refuse_required_arguments(builder: Any, target: str) -> None:
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):
        return  # some builtins have none
    try:
        signature.bind()
    except TypeError as error:
        raise UsageError(f"{target!r} is called without arguments: {error}; wrap it in a function") from error


def _refuse_lazy(model: nn.Module, target: str) -> None:
    parameters = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, value in parameters if is_lazy(value)]
    if lazy:
        raise UsageError(
            f"{target!r} has uninitialised lazy modules ({', '.join(lazy)}): "
            "run one batch through the model before returning it"
        )


def _positional(model: nn.Module, keywords: Mapping[str, Any]) -> tuple[Any, ...]:
    """Order keyword inputs as ``forward`` takes them."""
    bound = inspect.signature(model.forward).bind(**keywords)
    if bound.kwargs:
        names = ", ".join(bound.kwargs)
        raise UsageError(f"example_input_array has keyword-only inputs ({names}): give shapes by --input")
    return bound.args
