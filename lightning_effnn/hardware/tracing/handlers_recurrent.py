"""Recurrent layers that run as one kernel, counted by formula.

Each layer and direction is two products: of all steps' inputs at once, and of the hidden state step by
step. What the gates do is counted as elementwise operations.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_effnn.hardware.tracing.handlers_mac import gemm
from lightning_effnn.hardware.tracing.pieces import Call, Piece, Vector, handles

_GATES = {0: 1, 1: 1, 2: 4, 3: 3}  # cuDNN's modes: ReLU, tanh, LSTM, GRU
CELL_OPERATIONS = {0: 2, 1: 5, 2: 32, 3: 24}
"""Operations of one hidden unit in one step: 4 for each sigmoid or tanh, 1 for each sum and product.
LSTM: 5 functions, 8 sums with biases and 4 for cell and output; GRU: 3 functions and 12."""


@handles("mkldnn_rnn_layer")
def mkldnn_layer(call: Call) -> list[Piece] | None:
    """One layer in one direction: ``input [T, N, I]``, ``weight0 [G * H, I]``, ``weight1 [G * H, H]``."""
    source, weights = call.get("input"), [call.get("weight0"), call.get("weight1")]
    return _layer(call, source, source.shape[0], call.get("mode"), weights, call.outputs[0])


@handles("mkldnn_rnn_layer_backward")
def mkldnn_layer_backward(call: Call) -> list[Piece] | None:
    """Gradients of inputs, states and both weights: twice the products of the forward pass."""
    source, weights = call.get("input"), [call.get("weight1"), call.get("weight2")]
    return _layer_backward(call, source, source.shape[0], call.get("mode"), weights, call.outputs[0])


@handles("_cudnn_rnn", "miopen_rnn")
def cudnn_rnn(call: Call) -> list[Piece] | None:
    """All layers and directions; ``input [T, N, I]``, ``[N, T, I]`` or packed ``[rows, I]``."""
    return _cudnn(call, backward=False)


@handles("_cudnn_rnn_backward", "miopen_rnn_backward")
def cudnn_rnn_backward(call: Call) -> list[Piece] | None:
    """As :func:`cudnn_rnn`, twice the products."""
    return _cudnn(call, backward=True)


@handles("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def fused_cell(call: Call) -> list[Piece] | None:
    """The gates of one step, the products done before."""
    mode = 2 if "lstm" in call.name else 3
    units = call.outputs[0].numel()
    return [Vector("elementwise", call.inputs, call.outputs, CELL_OPERATIONS[mode] * units)]


def _cudnn(call: Call, backward: bool) -> list[Piece] | None:
    source, stride = call.get("input"), call.get("weight_stride0")
    weights, sizes = call.get("weight"), call.get("batch_sizes")
    steps = len(sizes) if sizes else source.shape[1 if call.get("batch_first") else 0]
    layer = _layer_backward if backward else _layer
    pieces: list[Piece] = []
    for start in range(0, len(weights), stride):
        group = weights[start : start + stride]
        matrices = [w for w in group if w.dim() == 2]
        made = layer(call, source, steps, call.get("mode"), matrices, call.outputs[0])
        pieces += made
    return pieces


def _layer(call: Call, source: Tensor, steps: int, mode: int, weights: Sequence[Tensor], result: Tensor) -> list[Piece]:
    axes = _rows_of(source)
    rows = source.numel() // source.shape[-1]
    each, repeats = _steps(rows, steps)
    first, hidden = weights[0], weights[1]
    projections = weights[2:]  # an LSTM's projection of the hidden state
    width = first.shape[0] // _GATES[mode]
    units = rows * width
    pieces: list[Piece] = [gemm(rows, first.shape[1], first.shape[0], weight=first, input=source, axes=axes)]
    for weight in (hidden, *projections):
        pieces.append(gemm(each, weight.shape[1], weight.shape[0], weight=weight, axes=axes, repeats=repeats))
    gates = Vector(
        "elementwise",
        [source],
        [result],
        CELL_OPERATIONS[mode] * units,
        elements_in=_GATES[mode] * units,
        elements_out=units,
    )
    return [*pieces, gates]


def _layer_backward(
    call: Call, source: Tensor, steps: int, mode: int, weights: Sequence[Tensor], result: Tensor
) -> list[Piece]:
    axes = _rows_of(source)
    inner = {"C": axes["B"]}
    rows = source.numel() // source.shape[-1]
    each, repeats = _steps(rows, steps)
    pieces: list[Piece] = []
    for number, weight in enumerate(weights):
        columns, width = weight.shape
        times, height = (1, rows) if number == 0 else (repeats, each)
        pieces.append(gemm(height, columns, width, weight=weight, axes=axes, repeats=times))
        pieces.append(gemm(columns, rows, width, input=source if number == 0 else None, axes=inner))
    units = rows * weights[0].shape[0]
    gates = Vector("elementwise", [source], [result], 2 * CELL_OPERATIONS[mode] * units, 2 * units, units)
    return [*pieces, gates]


def _rows_of(source: Tensor) -> dict[str, list[tuple[Tensor, int]]]:
    return {"B": [(source, dim) for dim in range(source.dim() - 1)]}


def _steps(rows: int, steps: int) -> tuple[int, int]:
    # Packed sequences of unequal length have no one number of rows a step: then all rows at once.
    return (rows // steps, steps) if steps and rows % steps == 0 else (rows, 1)
