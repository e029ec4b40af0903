"""``effnn profile``: what one inference of any model costs on an accelerator."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_effnn import hardware
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.hw import load_accelerator
from lightning_effnn.hardware.remarks import unknown_remark


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
    batch_dim: int | None = None,
    inferences: int | None = None,
    dtype: str | None = None,
    meta: bool = False,
    check: bool = False,
    depth: int = 2,
    csv: str | None = None,
    plot: str | None = None,
) -> None:
    """Trace ``target`` on one batch and print what it costs, by module and in all.

    With ``meta`` model and inputs have shapes and no values: a network of any size takes neither memory nor time,
    and everything counts as dense. With ``check`` batches of other sizes are traced too, and it is said whether one
    inference costs the same in them.

    Raises:
        UsageError: names the option or the target, and what would be accepted.
    """
    chip = load_accelerator(accelerator)
    specs = [InputSpec.parse(text) for text in inputs]
    floating = parse_dtype(dtype, "--dtype") if dtype else None
    if batch_size < 1 or depth < 1 or (inferences is not None and inferences < 1):
        said = "" if inferences is None else f" --inferences {inferences}"
        raise UsageError(f"--batch-size {batch_size} --depth {depth}{said}: use whole numbers of at least 1")
    with _placed(meta, target):
        model = load_model(target)
        _refuse_lazy(model, target)
        if meta:
            move_to_meta(model)
        if floating is not None:
            model.to(floating)
        torch.manual_seed(0)
        batch = make_batch(model, specs)
        if batch_dim is not None:
            _refuse_axis(batch, batch_dim)
        trace = hardware.trace(model, *batch, batch_size=batch_size, batch_dim=batch_dim, inferences=inferences)
        checked = _checked(model, batch, chip, batch_dim, inferences) if check else None
    report = hardware.estimate(trace, chip)
    console.print(report.table(depth))
    for remark in _remarks(report):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    if checked is not None:
        console.print(f"checked: {checked}", markup=False, highlight=False, soft_wrap=True)
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


def move_to_meta(model: nn.Module) -> None:
    """Leave a model the shapes of its tensors only; tensors that its modules share stay shared.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> move_to_meta(model)
    >>> model[1].weight is model[0].weight, model[0].bias.device.type
    (True, 'meta')
    """
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)
                module._parameters[name] = moved[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = moved.setdefault(id(buffer), buffer.to("meta"))


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
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return tuple(_like(x, floating, device) if isinstance(x, Tensor) else x for x in batch)


def parse_dtype(name: str, option: str) -> torch.dtype:
    """Return torch's type of that name."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"{option}: torch has no type {name!r}; use float32, bfloat16, int64, bool or another")
    return dtype


@contextmanager
def _placed(meta: bool, target: str) -> Iterator[None]:
    """Make what is built and run here have no values, if asked for."""
    if not meta:
        yield
        return
    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, NotImplementedError) as error:  # what torch raises where a value is asked for
        raise UsageError(
            f"--meta: {target!r} can't be built and run on tensors without values: {error}; profile it without --meta"
        ) from error


def _remarks(report: hardware.CostReport) -> list[str]:
    """What has to be known beside the figures."""
    dense = (
        [] if report.has_values else ["no values on the meta device: every weight and activation counts as non-zero"]
    )
    assumed = [f"assumed: {note}" for note in report.notes]
    return dense + assumed + ([unknown_remark(report.unknown)] if report.unknown else [])


def _checked(
    model: nn.Module, batch: Sequence[Any], chip: hardware.Accelerator, batch_dim: int | None, inferences: int | None
) -> hardware.BatchCheck:
    try:
        return hardware.check_batches(model, *batch, accelerator=chip, batch_dim=batch_dim, inferences=inferences)
    except ValueError as error:
        raise UsageError(f"--check-batches: {error}") from error


def _refuse_axis(batch: Sequence[Any], batch_dim: int) -> None:
    shapes = [tuple(x.shape) for x in batch if isinstance(x, Tensor)]
    if shapes and not any(-len(shape) <= batch_dim < len(shape) for shape in shapes):
        raise UsageError(f"--batch-dim {batch_dim}: no input has that axis (shapes: {', '.join(map(str, shapes))})")


def _like(tensor: Tensor, floating: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "meta":
        tensor = tensor.to(device)
    return tensor.to(floating) if tensor.is_floating_point() else tensor


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
