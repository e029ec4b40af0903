"""Write a prepared model as an ONNX file that runs in integers, and say what of it doesn't."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from lightning_effnn._files import write_whole
from lightning_effnn.deploy.capture import Inputs, as_inputs
from lightning_effnn.deploy.integers import Integers
from lightning_effnn.deploy.macs import macs_of
from lightning_effnn.deploy.onnx_file import OPSET, check_model, check_opset, onnx_model, require
from lightning_effnn.deploy.operations import PRODUCTS, kind, varying
from lightning_effnn.deploy.prepared import Prepared, calibrate_, prepare


class LeftInFloat(NamedTuple):
    """An operation that runs in floating point.

    Attributes:
        operation: its name in ATen, and of the node.
        share: of all multiply-accumulates of the network.
        why: what keeps it from integers.
    """

    operation: str
    share: float
    why: str


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        bytes: its size.
        integer_macs: share of the multiply-accumulates whose operands are 8-bit integers, in [0, 1].
        left_in_float: the operations that compute with floats, those with the largest share first.
        dynamic_batch: whether the file takes batches of any length.
    """

    path: Path
    bytes: int
    integer_macs: float
    left_in_float: tuple[LeftInFloat, ...]
    dynamic_batch: bool

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.bytes:,} bytes, {self.integer_macs:.1%} of multiply-accumulates in integers, "
            f"{'any batch' if self.dynamic_batch else 'this batch size only'}"
        ]
        lines += [f"  in floats: {left.operation} ({left.share:.1%}): {left.why}" for left in self.left_in_float]
        return "\n".join(lines)


def to_onnx(
    model: nn.Module,
    example: Inputs,
    path: str | Path,
    *,
    calibration: Iterable[Any] | None = None,
    opset: int = OPSET,
) -> ExportReport:
    """Write ``model`` as an ONNX file of QuantizeLinear and DequantizeLinear around its operations.

    Weights are int8, or 4-bit integers where the model has no more bits; biases are int32. Runtimes fuse each
    operation with the pair before and after it into one integer kernel; run as it stands, the file computes what
    ``model`` does up to the rounding of floats. It appears whole or not at all.

    Args:
        model: of :func:`~lightning_effnn.deploy.prepare`, calibrated or trained; or any other, attached quantisers
            or not, that :func:`~lightning_effnn.deploy.prepare` takes and ``calibration`` finds the ranges for.
        example: a tensor or a tuple of tensors that the model is called with, batch first.
        path: the file.
        calibration: batches of inputs, for a model that isn't prepared.
        opset: version of ONNX, at least 21.

    Raises:
        ImportError: onnx or onnxscript is missing.
        TypeError: ``example`` is no tensor or tuple of them.
        ValueError: the model isn't prepared and there is nothing to find ranges from, has quantisers that have seen
            nothing, or can't be exported; or ``opset`` is too old.
        OSError: the file can't be written.
    """
    require("onnx", "onnxscript")
    check_opset(opset)
    inputs = as_inputs(example)
    prepared = _ready(model, inputs, calibration)
    training = prepared.training
    prepared.eval()
    try:
        written = onnx_model(Integers(prepared), inputs, _input_names(prepared), opset)
        macs = macs_of(prepared.network, inputs)
    finally:
        prepared.train(training)
    check_model(written)
    size = write_whole(path, lambda beside: beside.write_bytes(written.SerializeToString()))
    total = max(sum(macs.values()), 1)
    done = sum(count for name, count in macs.items() if name in prepared.integer)
    first = written.graph.input[0].type.tensor_type.shape.dim
    return ExportReport(
        Path(path), size, done / total, _left(prepared, macs, total), bool(first) and bool(first[0].dim_param)
    )


def float_onnx(prepared: Prepared, example: Inputs) -> bytes:
    """Return the content of an ONNX file of a prepared model without its quantisers: float32, batch norms folded.

    Args:
        prepared: of :func:`~lightning_effnn.deploy.prepare`; it need not be calibrated.
        example: as for :func:`to_onnx`.

    Raises:
        ImportError, TypeError, ValueError: as :func:`to_onnx`.
    """
    require("onnx", "onnxscript")
    written = onnx_model(Integers(prepared, rounded=False), as_inputs(example), _input_names(prepared))
    content: bytes = written.SerializeToString()
    return content


def _input_names(prepared: Prepared) -> list[str]:
    return [node.name for node in prepared.network.graph.nodes if node.op == "placeholder"]


def _ready(model: nn.Module, inputs: tuple[Tensor, ...], calibration: Iterable[Any] | None) -> Prepared:
    """``model``, prepared and calibrated."""
    if not isinstance(model, Prepared):
        if calibration is None:
            raise ValueError(
                f"model must be prepared, for the ranges of its activations to be known, got a {type(model).__name__}: "
                "call deploy.prepare(model, example) and deploy.calibrate_(prepared, batches), or give calibration="
            )
        model = calibrate_(prepare(model, inputs), calibration)
    if not all("val" in node.meta for node in model.network.graph.nodes if kind(node) in PRODUCTS):
        raise ValueError(
            "model was pickled, which loses what its graph knows of shapes: save prepared.state_dict(), prepare the "
            "model again and load it there"
        )
    if model.unknown:
        raise ValueError(
            f"{len(model.unknown)} quantisers of activations have no scale, among them {model.unknown[0]!r}: show the "
            "model some data first, deploy.calibrate_(prepared, batches); one that has seen only zeros has none either"
        )
    return model


def _left(prepared: Prepared, macs: dict[str, int], total: int) -> tuple[LeftInFloat, ...]:
    found, changing = [], varying(prepared.network.graph)
    for node in prepared.network.graph.nodes:
        if node.op != "call_function" or node.name in prepared.integer or node not in changing or not _computes(node):
            continue
        why = prepared.left.get(node.name) or f"{prepared.backend.name} has no integer kernel for it"
        if kind(node) in prepared.backend.integer and node.name not in prepared.left:
            why = "what it reads is in floating point"
        found.append(LeftInFloat(f"{_operation(node)} ({node.name})", macs.get(node.name, 0) / total, why))
    return tuple(sorted(found, key=lambda left: -left.share))


def _computes(node: fx.Node) -> bool:
    """Whether an operation does more than move values, cut them off or ask for sizes."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) and value else value
    moves = kind(node) in ("move", "limit") or node.target is operator.getitem
    return isinstance(value, Tensor) and value.is_floating_point() and not moves


def _operation(node: fx.Node) -> str:
    name = str(getattr(node.target, "overloadpacket", node.target)).rpartition(".")[2]
    return "batch_norm" if "batch_norm" in name else name
