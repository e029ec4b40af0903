"""An ONNX file of a graph that ``torch.export`` has written down: named, in few bytes, checked."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.deploy.capture import batched, free_batch
from lightning_effnn.deploy.integers import Integers

OPSET = 21
"""The first with 4-bit integers."""


def require(*names: str) -> None:
    """Import packages of the extra ``deploy``.

    Raises:
        ImportError: one is missing; the message says how to install it.
    """
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(f"files for runtimes need {name}: pip install 'lightning_effnn[deploy]'") from error


def check_opset(opset: int) -> None:
    """Refuse a version of ONNX that lacks what is written, or that isn't known here.

    Raises:
        ValueError: it is none of those.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not OPSET <= opset <= newest:
        raise ValueError(f"opset must be from {OPSET}, the first with 4-bit integers, to {newest}, got {opset!r}")


def onnx_model(integers: Integers, inputs: tuple[Tensor, ...], names: list[str], opset: int = OPSET) -> Any:
    """Return ``integers`` as an ``onnx.ModelProto`` whose first axis may have any length.

    Args:
        integers: what is to be computed.
        inputs: an example of what it is called with.
        names: of the inputs.
        opset: version of ONNX.

    Raises:
        ValueError: an operation can't be written in ONNX; the message says which.
    """
    inputs = tuple(x.detach().clone() for x in batched(inputs))
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(integers.eval(), inputs, dynamic_shapes=free_batch(inputs), strict=False)
            written = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=opset, input_names=names, optimize=True
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"the model can't be written in ONNX: {_cause(error)}") from error
    assert written is not None
    model = written.model_proto
    _pack(model, integers.narrow)
    _tidy(model, integers.names)
    return model


def check_model(model: Any) -> None:
    """Raise if ONNX's own checker or its shape inference finds fault with ``model``."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _cause(error: BaseException) -> str:
    """The innermost reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from speaking of packages that it doesn't need."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _tidy(model: Any, names: Mapping[str, str]) -> None:
    """Name weights and biases as in the model, all else by numbers, and drop what tells only how the file was made."""
    graph = model.graph
    ends = {value.name for value in (*graph.input, *graph.output)}
    renamed = {name: name for name in ends}
    taken = set(ends)
    for tensor in graph.initializer:
        if (name := names.get(tensor.name)) and name not in taken:
            renamed[tensor.name] = name
            taken.add(name)
    numbers = (str(n) for n in itertools.count() if str(n) not in taken)
    for name in (*(t.name for t in graph.initializer), *(name for node in graph.node for name in node.output)):
        if name and name not in renamed:
            renamed[name] = next(numbers)
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    graph.name, model.producer_name, model.producer_version = "network", "lightning_effnn", ""
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        for ports in (node.input, node.output):
            ports[:] = [renamed.get(name, name) for name in ports]
    for tensor in graph.initializer:
        tensor.name = renamed[tensor.name]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def _pack(model: Any, narrow: set[str]) -> None:
    """Store integers that fit in 4 bits in 4 bits; a Cast, which runtimes carry out as they load, makes bytes of them.

    DequantizeLinear of 4-bit integers would be carried out at each call.
    """
    import ml_dtypes
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for place, tensor in enumerate(graph.initializer):
        if tensor.name not in narrow:
            continue
        values = numpy_helper.to_array(tensor).astype(ml_dtypes.int4)
        wide = f"b{place}"
        graph.initializer[place].CopyFrom(numpy_helper.from_array(values, tensor.name))
        for node in graph.node:
            for at, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[at] = wide
        graph.node.insert(0, helper.make_node("Cast", [tensor.name], [wide], to=TensorProto.INT8))
