"""A prepared model written with the operations of ONNX: integers where they are kept, floats where they are needed."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.onnx.ops import symbolic

from lightning_effnn.deploy.layers import LayerQuantizer
from lightning_effnn.deploy.levels import Bytes, bytes_of, is_cut_by_rounding, quantizer_at
from lightning_effnn.deploy.operations import aten, has_weights, is_global, kind
from lightning_effnn.deploy.prepared import Prepared
from lightning_effnn.quantization import TensorQuantizer


class Rounded:
    """Values that are integers times a scale: bytes that are moved about as they are, floats where one asks.

    Args:
        integers: uint8, of any shape.
        scale: float32 without axes.
        zero_point: uint8 without axes.
        zero: its value.
    """

    def __init__(self, integers: Tensor, scale: Tensor, zero_point: Tensor, zero: int) -> None:
        self.integers, self.scale, self.zero_point, self.zero = integers, scale, zero_point, zero
        self._floats: Tensor | None = None

    @property
    def floats(self) -> Tensor:
        """The values, by one DequantizeLinear for all who ask."""
        if self._floats is None:
            self._floats = _dequantize(self.integers, self.scale, self.zero_point)
        return self._floats

    def moved(self, integers: Tensor) -> Rounded:
        """Return values of the same scale in other places."""
        return Rounded(integers, self.scale, self.zero_point, self.zero)


class Integers(nn.Module):
    """What a file for onnxruntime computes, for ``torch.export`` to write down.

    Args:
        prepared: calibrated.
        rounded: ``False`` leaves all quantisers out: the network in floating point, to compare with.

    Attributes:
        names: what weights and the like are called in the model, by the names of buffers here.
        bytes: of the quantisers of activations, by node.
        narrow: the buffers whose integers fit in 4 bits.
        linear: linear layers that run in integers, by node.
        floats: layers that run in floats, by node.
        cut: limits that rounding carries out.
        skipped: nodes whose values nothing needs that runs.
    """

    def __init__(self, prepared: Prepared, rounded: bool = True) -> None:
        super().__init__()
        self._network = [prepared.network]  # its parameters are not this module's: the file has integers in their place
        self.rounded, self.names = rounded, dict[str, str]()
        self.bytes: dict[str, Bytes] = {}
        self.narrow, self.linear, self.cut = set[str](), set[str](), set[str]()
        self.floats = {n.name for n in prepared.network.graph.nodes if has_weights(n)} - set(prepared.integer)
        if rounded and self.floats:
            for place, value in enumerate((torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)):
                self._keep(f"end_{place}", torch.tensor(value, device="cpu"))
        constants, layers = _without_inputs(prepared.network)
        needed = {node for node in constants if any(user not in constants | layers for user in node.users)}
        self.skipped = {node.name for node in constants.keys() - needed}
        for node in needed:
            name = str(node.target) if node.op == "get_attr" else node.name
            self._keep(f"constant_{node.name}", constants[node], name)
        for node, (module, weight, bias) in layers.items():
            self._keep_layer(node, module, weight, bias)
        for node in prepared.network.graph.nodes if rounded else ():
            quantizer = quantizer_at(node, prepared.network)
            if quantizer is not None:
                self._keep_scale(quantizer, node)
            if kind(node) == "limit" and is_cut_by_rounding(node, prepared.network):
                self.cut.add(node.name)

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the prepared model returns."""
        return _Writer(self, self._network[0]).run(*inputs, enable_io_processing=True)

    def _keep(self, key: str, value: Tensor, name: str | None = None) -> None:
        self.register_buffer(key, value.detach().clone())
        if name:
            self.names[key] = name

    def _keep_layer(self, node: fx.Node, module: LayerQuantizer, weight: Tensor, bias: Tensor | None) -> None:
        layer = layer_of(node)
        name = layer.meta["weight"]
        path = f"{name.rpartition('.')[0]}.bias".lstrip(".")
        if not self.rounded:
            self._keep(f"weight_{node.name}", weight, name)
            if bias is not None:
                self._keep(f"bias_{node.name}", bias, path)
            return
        codes, step, counts, unit = module.integers(weight, bias)
        self._keep(f"weight_{node.name}", codes.t().contiguous() if _is_matrix_product(layer) else codes, name)
        if kind(layer) == "linear":
            self.linear.add(layer.name)  # onnxruntime fuses a product of matrices only if zero points are there
            self._keep(f"weight_zero_{node.name}", torch.zeros_like(step, dtype=torch.int8))
        if module.weight.bits <= 4:
            self.narrow.add(f"weight_{node.name}")
        self._keep(f"weight_scale_{node.name}", step)
        if counts is not None and unit is not None:
            self._keep(f"bias_{node.name}", counts, path)
            self._keep(f"bias_scale_{node.name}", unit.expand(counts.shape))
        elif bias is not None:
            self._keep(f"bias_{node.name}", bias, path)

    def _keep_scale(self, quantizer: TensorQuantizer, node: fx.Node) -> None:
        levels = self.bytes[node.name] = bytes_of(quantizer, node)
        self._keep(f"scale_{node.name}", quantizer.step())
        for value in levels:
            if not hasattr(self, f"byte_{value}"):
                self._keep(f"byte_{value}", torch.tensor(value, dtype=torch.uint8, device="cpu"))


class _Writer(fx.Interpreter):
    """Runs the graph of a prepared model with the operations of ONNX in the place of quantisers and layers."""

    def __init__(self, kept: Integers, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.kept = kept

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node: a tensor, or :class:`Rounded`."""
        if n.name in self.kept.skipped:
            return None
        if f"constant_{n.name}" in self.kept.names:
            return getattr(self.kept, f"constant_{n.name}")
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, LayerQuantizer):
            return self._layer(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if isinstance(module, TensorQuantizer):
            return self._round(n, _floats(args[0])) if self.kept.rounded else args[0]
        if _is_done_by_convolutions(n):
            return args[0]
        if kind(n) == "move" and isinstance(args[0], Rounded):
            return args[0].moved(_moved(n, args[0], args[1:], kwargs))
        if n.name in self.kept.cut:
            return args[0]
        if n.name in self.kept.floats and isinstance(args[0], Rounded):
            args = (self._apart(args[0].floats), *args[1:])
        return self._operation(n, map_aggregate(args, _floats), map_aggregate(kwargs, _floats))

    def _apart(self, x: Tensor) -> Tensor:
        """``x``, from behind an operation that changes nothing.

        onnxruntime rounds the weights of a layer between DequantizeLinear and QuantizeLinear by itself.
        """
        ends = [getattr(self.kept, f"end_{place}") for place in (0, 1)]
        found: Tensor = symbolic("Clip", (x, *ends), dtype=x.dtype, shape=x.shape)
        return found

    def _operation(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """What an operation on floats gives, in the form that runtimes know integer kernels for."""
        if node.op != "call_function":
            return args[0] if node.op == "output" else super().run_node(node)
        if kind(node) == "convolution":
            margins = _margins(node.args[0]) if _is_done_by_convolutions(node.args[0]) else ()
            return _convolution(margins, *args, **kwargs)
        if node.name in self.kept.linear:
            return _linear(node, *args)
        if kind(node) == "average" and is_global(node):
            return symbolic("GlobalAveragePool", args[:1], dtype=args[0].dtype, shape=(*args[0].shape[:2], 1, 1))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _layer(self, node: fx.Node) -> tuple[Tensor, Tensor | None]:
        kept = self.kept
        weight = getattr(kept, f"weight_{node.name}")
        bias = getattr(kept, f"bias_{node.name}", None)
        if not kept.rounded:
            return weight, bias
        axis = 1 if _is_matrix_product(layer_of(node)) else 0
        zero = getattr(kept, f"weight_zero_{node.name}", None)
        weight = _dequantize(weight, getattr(kept, f"weight_scale_{node.name}"), zero, axis=axis)
        if bias is not None and not bias.is_floating_point():
            bias = _dequantize(bias, getattr(kept, f"bias_scale_{node.name}"), axis=0)
        return weight, bias

    def _round(self, node: fx.Node, x: Tensor) -> Rounded:
        scale, levels = getattr(self.kept, f"scale_{node.name}"), self.kept.bytes[node.name]
        zero_point = getattr(self.kept, f"byte_{levels.zero}")
        integers = symbolic("QuantizeLinear", (x, scale, zero_point), dtype=torch.uint8, shape=x.shape)
        if levels[1:] != (0, 255):
            limits = [getattr(self.kept, f"byte_{limit}") for limit in levels[1:]]
            integers = symbolic("Clip", (integers, *limits), dtype=torch.uint8, shape=x.shape)
        return Rounded(integers, scale, zero_point, levels.zero)


def _floats(value: Any) -> Any:
    return value.floats if isinstance(value, Rounded) else value


def _dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    operands = (integers, scale) if zero_point is None else (integers, scale, zero_point)
    attributes: dict[str, Any] = {"axis": axis} if axis is not None and scale.dim() else {}
    found: Tensor = symbolic("DequantizeLinear", operands, attributes, dtype=torch.float32, shape=integers.shape)
    return found


def _moved(node: fx.Node, values: Rounded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    target: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    if node.target in (aten.pad.default, aten.constant_pad_nd.default):
        return aten.constant_pad_nd.default(values.integers, args[0], values.zero)  # type: ignore[no-any-return]
    return target(values.integers, *args, **kwargs)


def _margins(node: Any) -> tuple[int, ...]:
    """By how much a padding enlarges each axis of an image: those before, then those after; empty if it is none."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return ()
    pairs = node.args[1]
    return (*pairs[-2::-2], *pairs[::-2])


def _is_done_by_convolutions(node: Any) -> bool:
    """Whether ``node`` pads images with zeros, for convolutions alone, which can do that themselves."""
    margins = _margins(node) if kind(node) == "move" else ()
    readers = [kind(user) == "convolution" and user.args[0] is node for user in node.users]
    axes = node.meta["val"].dim() - 2 if margins else 0
    return bool(margins) and all(readers) and len(margins) == 2 * axes and min(margins) >= 0


def _convolution(
    margins: tuple[int, ...], x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any, **kwargs: Any
) -> Tensor:
    """A convolution whose shape is found as torch finds it."""
    names = ("stride", "padding", "dilation", "groups")
    chosen: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    chosen |= dict(zip(names, settings, strict=False)) | kwargs
    axes = weight.dim() - 2
    stride, dilation = (_each(chosen[name], axes) for name in ("stride", "dilation"))
    kernel = list(weight.shape[2:])
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(chosen["padding"], str):
        before = [0] * axes if chosen["padding"] == "valid" else [r // 2 for r in reach]
        after = [0] * axes if chosen["padding"] == "valid" else [r - r // 2 for r in reach]
    else:
        before = after = _each(chosen["padding"], axes)
    if margins:
        before = [b + m for b, m in zip(before, margins[:axes], strict=True)]
        after = [a + m for a, m in zip(after, margins[axes:], strict=True)]
    size = [
        (n + b + a - r - 1) // s + 1 for n, b, a, r, s in zip(x.shape[2:], before, after, reach, stride, strict=True)
    ]
    attributes: dict[str, Any] = {
        name: value
        for name, value, default in (
            ("strides", stride, [1] * axes),
            ("pads", [*before, *after], [0] * 2 * axes),
            ("dilations", dilation, [1] * axes),
            ("group", int(chosen["groups"]), 1),
        )
        if value != default
    }
    operands = (x, weight) if bias is None else (x, weight, bias)
    found: Tensor = symbolic("Conv", operands, attributes, dtype=x.dtype, shape=(x.shape[0], weight.shape[0], *size))
    return found


def _each(value: Any, axes: int) -> list[int]:
    values = [int(v) for v in (value if isinstance(value, list | tuple) else [value])]
    return values * axes if len(values) == 1 else values


def _linear(node: fx.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if _is_matrix_product(node):
        shape = (*x.shape[:-1], weight.shape[1])
        product: Tensor = symbolic("MatMul", (x, weight), dtype=x.dtype, shape=shape)
        return product if bias is None else product + bias
    operands = (x, weight) if bias is None else (x, weight, bias)
    found: Tensor = symbolic("Gemm", operands, {"transB": 1}, dtype=x.dtype, shape=(x.shape[0], weight.shape[0]))
    return found


def _is_matrix_product(layer: fx.Node) -> bool:
    """Whether a linear layer has inputs of more than two axes, which Gemm doesn't take."""
    return kind(layer) == "linear" and layer.meta["val"].dim() != 2


def layer_of(node: fx.Node) -> fx.Node:
    """The layer whose weight is rounded at ``node``."""
    return next(user for part in node.users for user in part.users)


@torch.no_grad()
def _without_inputs(
    network: fx.GraphModule,
) -> tuple[dict[fx.Node, Any], dict[fx.Node, tuple[LayerQuantizer, Tensor, Tensor | None]]]:
    """The values of nodes that depend on no input, and what quantisers of layers are given."""
    constants: dict[fx.Node, Any] = {}
    layers: dict[fx.Node, tuple[LayerQuantizer, Tensor, Tensor | None]] = {}
    for node in network.graph.nodes:
        if node.op == "get_attr":
            constants[node] = operator.attrgetter(str(node.target))(network)
        elif node.op in ("call_function", "call_module") and all(n in constants for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), constants.__getitem__)
            module = network.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(module, LayerQuantizer):
                layers[node] = (module, *args)
            else:
                constants[node] = node.target(*args, **kwargs) if module is None else module(*args)
    return constants, layers
