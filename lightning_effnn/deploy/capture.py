"""A model as a graph of tensor operations without side effects, batch norms folded into the layers before them."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_effnn._threads import kept
from lightning_effnn.deploy.operations import aten, kind

Inputs = Tensor | Sequence[Tensor]


def capture(model: nn.Module, example: Inputs) -> fx.GraphModule:
    """Return what ``model`` computes in eval mode as a graph of aten operations, with parameters of its own.

    The first axis of each input may have any length afterwards, where the model allows it. Layers' nodes have in
    ``meta`` the name of their weight (``"weight"``), the path of their module (``"module"``), and what folding
    multiplied the channels by (``"fold"``).

    Raises:
        TypeError: ``example`` is no tensor or tuple of tensors.
        ValueError: ``torch.export`` can't follow the model; the message says where.
    """
    program = _exported(model, as_inputs(example))
    with_guards: Any = program.module(check_guards=False)
    network = _copy(with_guards)
    _remember_layers(network.graph)
    _views_as_reshapes(network.graph)
    _splits_as_slices(network.graph)
    _average_by_pooling(network.graph)
    _fold_batch_norms(network)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    return _copy(network)


def as_inputs(example: Inputs) -> tuple[Tensor, ...]:
    """Return the tensors that a model is called with.

    Raises:
        TypeError: there are others than tensors, or none.
    """
    inputs = tuple(example) if isinstance(example, list | tuple) else (example,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs) or "nothing"
        raise TypeError(
            f"example must be a tensor, or a tuple of the tensors that the model is called with, got {kinds}"
        )
    return inputs


def batched(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return inputs with at least two of each, for ``torch.export`` takes a length of one for one that is fixed."""
    if all(x.dim() and x.shape[0] == 1 for x in inputs):
        return tuple(torch.cat((x, x)) for x in inputs)
    return inputs


def free_batch(inputs: tuple[Tensor, ...]) -> Any:
    """Return the shapes of ``inputs`` for ``torch.export``, the first axis left open."""
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for x in inputs:
        if x.dim():
            shapes[x] = {0: torch.export.Dim.AUTO}
    return shapes


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    inputs = tuple(x.detach().clone() for x in batched(inputs))
    with kept(model.modules(), "training"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of torch's own
        model.eval()
        try:
            program = torch.export.export(model, inputs, dynamic_shapes=free_batch(inputs), strict=False)
            plain: torch.export.ExportedProgram = program.run_decompositions({})
        except Exception as error:  # whatever the model's own code raises under fake tensors
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise ValueError(
                f"{type(model).__name__} can't be captured by torch.export, as a file for a runtime needs: {reason}. "
                "Usual causes: control flow that depends on values, calls into NumPy, and inputs that are no tensors"
            ) from error
    return plain


def _copy(network: fx.GraphModule) -> fx.GraphModule:
    """The graph with copies of the parameters and buffers it reads, and nothing else."""
    attributes: dict[str, Any] = {}
    for node in network.graph.nodes:
        if node.op == "get_attr":
            found = operator.attrgetter(node.target)(network)
            copied = found.detach().clone()
            attributes[node.target] = (
                nn.Parameter(copied, requires_grad=found.requires_grad) if isinstance(found, nn.Parameter) else copied
            )
    network.graph._tracer_cls = None  # that of torch.export can't be pickled
    return fx.GraphModule(attributes, network.graph)


def _remember_layers(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if kind(node) in ("convolution", "linear"):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            weight = node.args[1]
            node.meta["module"] = stack[-1][0] if stack else ""
            node.meta["weight"] = str(weight.target) if weight.op == "get_attr" else weight.name


def _views_as_reshapes(graph: fx.Graph) -> None:
    """Let values lie in memory as they may: what is rounded, or runs elsewhere, need not keep a view's strides."""
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def _splits_as_slices(graph: fx.Graph) -> None:
    """Write each part of a split as a slice, which only moves values."""
    for part in list(graph.nodes):
        split: Any = part.args[0] if part.target is operator.getitem else None
        if split is None or split.target not in (aten.split.Tensor, aten.split_with_sizes.default):
            continue
        source, size, axis = (*split.args, 0)[:3]
        place: Any = part.args[1]
        start, length = (place * size, size) if isinstance(size, int) else (sum(size[:place]), size[place])
        if not isinstance(start + length, int):
            continue  # along the batch
        with graph.inserting_before(part):
            piece = graph.call_function(aten.slice.Tensor, (source, axis, start, start + length))
        piece.meta = dict(part.meta)
        part.replace_all_uses_with(piece)
        graph.erase_node(part)


def _average_by_pooling(graph: fx.Graph) -> None:
    """Write means over both positions of an image as pooling, which runtimes have an integer kernel for."""
    for node in list(graph.nodes):
        if node.target is not aten.mean.dim or node.kwargs:
            continue
        source, axes = node.args[:2]
        value = source.meta["val"]
        if value.dim() != 4 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        with graph.inserting_before(node):
            pooled = graph.call_function(aten.adaptive_avg_pool2d.default, (source, [1, 1]))
            pooled.meta = {**node.meta, "val": value.mean((2, 3), keepdim=True)}
            kept_axes = len(node.args) > 2 and node.args[2]
            flat = pooled if kept_axes else graph.call_function(aten.squeeze.dims, (pooled, [2, 3]))
        flat.meta = pooled.meta if kept_axes else dict(node.meta)
        node.replace_all_uses_with(flat)
        graph.erase_node(node)


def _fold_batch_norms(network: fx.GraphModule) -> None:
    graph = network.graph
    for node in list(graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        layer = node.args[0]
        outputs = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        settings = [None if arg is None else _constant(network, arg) for arg in node.args[1:5]]
        if not _takes_batch_norm(layer) or len(outputs) != len(node.users) or any(s is False for s in settings):
            continue
        _fold(network, layer, settings, float(node.args[6]))
        for output in outputs:
            output.replace_all_uses_with(layer)
            graph.erase_node(output)
        graph.erase_node(node)


def _takes_batch_norm(layer: Any) -> bool:
    """Whether a batch norm behind ``layer`` is that of its channels, and all that reads it."""
    if kind(layer) not in ("convolution", "linear") or len(layer.users) != 1 or layer.args[1].op != "get_attr":
        return False
    bias = layer.args[2] if len(layer.args) > 2 else None
    return (kind(layer) == "convolution" or layer.meta["val"].dim() == 2) and (bias is None or bias.op == "get_attr")


def _constant(network: fx.GraphModule, node: Any) -> Any:
    return operator.attrgetter(node.target)(network).detach().double() if node.op == "get_attr" else False


def _fold(network: fx.GraphModule, layer: fx.Node, settings: list[Any], epsilon: float) -> None:
    gain, shift, mean, variance = settings
    weight_node: Any = layer.args[1]
    bias_node: Any = layer.args[2] if len(layer.args) > 2 else None
    weight = operator.attrgetter(weight_node.target)(network)
    bias = 0.0 if bias_node is None else _constant(network, bias_node)
    factor = (variance + epsilon).rsqrt() * (1.0 if gain is None else gain)
    folded = weight.detach().double() * factor.view(-1, *[1] * (weight.dim() - 1))
    moved = (bias - mean) * factor + (0.0 if shift is None else shift)
    names = []
    for part, values in (("weight", folded), ("bias", moved)):
        # A name of its own: what is folded may be shared with layers that have another batch norm, or none.
        name = f"{weight_node.target.rpartition('.')[0]}.{part}".lstrip(".")
        others = [n for n in network.graph.nodes if n.op == "get_attr" and n.target == name and n.users]
        if any(set(n.users) != {layer} for n in others):
            name = f"{name}_{layer.name}"
        _set(network, name, nn.Parameter(values.to(weight.dtype), requires_grad=weight.requires_grad))
        names.append(name)
    with network.graph.inserting_before(layer):
        nodes = [network.graph.get_attr(name) for name in names]
    for node, values in zip(nodes, (folded, moved), strict=True):
        node.meta["val"] = values.to(weight.dtype)
    layer.args = (layer.args[0], *nodes, *layer.args[3:])
    layer.meta["fold"] = factor.float()


def _set(network: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    owner = network.get_submodule(path) if path else network
    setattr(owner, last, parameter)
