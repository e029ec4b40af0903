"""A model that computes what an integer runtime will compute: to calibrate, to train on, to export."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_effnn._threads import kept
from lightning_effnn.deploy.arithmetic import compute
from lightning_effnn.deploy.backend import Backend, find_backend
from lightning_effnn.deploy.capture import Inputs, capture
from lightning_effnn.deploy.layers import LayerQuantizer
from lightning_effnn.deploy.placing import Placement, place
from lightning_effnn.deploy.widths import Width, declared_widths, layers_of, plan_of, planned, uniform
from lightning_effnn.quantization import Attachment, QuantizationPlan, TensorQuantizer, strip_
from lightning_effnn.quantization.hooks import hosts_of
from lightning_effnn.quantization.quantizer import ScaleSource

_ACTIVATIONS, _LAYERS = "activations", "layers"


class Prepared(nn.Module):
    """What :func:`prepare` returns: called as the model is, it gives what the integer file will give.

    Attributes:
        network: the graph, with folded parameters and quantisers.
        backend: where it is to run.
        left: products that stay in floating point, and why, by the name of their node.
        integer: names of the nodes that run in integers.
        given: names of the quantisers of activations whose scale came with the model: calibrating leaves them.
    """

    def __init__(self, network: fx.GraphModule, backend: Backend, placement: Placement) -> None:
        super().__init__()
        self.network, self.backend = network, backend
        self.left = {node.name: why for node, why in placement.left.items()}
        self.integer = tuple(node.name for node in placement.integer)
        self.given: set[str] = set()

    def forward(self, *inputs: Any) -> Any:
        """Return what the model returns for ``inputs``, with the numbers rounded as in the file.

        In eval mode they are computed with integers as the runtime's kernels do, without a gradient. In train mode,
        while calibrating and for inputs that require a gradient, with floats that are rounded, which now and then
        takes a value halfway between two levels to the other one.
        """
        learning = self.training or any(q.training for q in self.activations.values()) or bool(self.unknown)
        if learning or any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return self.network(*inputs)
        return compute(self.network, inputs)

    def inputs_of(self, batch: Any) -> tuple[Tensor, ...]:
        """Return what the model takes of a loader's batch: the batch itself, or its first elements.

        Raises:
            TypeError: these are no tensors, or too few.
        """
        count = sum(node.op == "placeholder" for node in self.network.graph.nodes)
        found = (
            (batch,) if isinstance(batch, Tensor) else tuple(batch)[:count] if isinstance(batch, tuple | list) else ()
        )
        if len(found) != count or not all(isinstance(x, Tensor) for x in found):
            raise TypeError(f"a batch must be {count} input tensors, or begin with them, got {type(batch).__name__}")
        return found

    @property
    def activations(self) -> dict[str, TensorQuantizer]:
        """The quantisers of activations, by the node whose values they round."""
        return {name: q for name, q in _children(self.network, _ACTIVATIONS) if isinstance(q, TensorQuantizer)}

    @property
    def layers(self) -> dict[str, LayerQuantizer]:
        """The quantisers of weights and biases, by the node of the layer."""
        return {name: q for name, q in _children(self.network, _LAYERS) if isinstance(q, LayerQuantizer)}

    @property
    def scales(self) -> list[nn.Parameter]:
        """Learned scales, to be trained without weight decay; empty where they are observed."""
        quantizers = [*self.activations.values(), *(layer.weight for layer in self.layers.values())]
        return [q.scale for q in quantizers if isinstance(q.scale, nn.Parameter)]

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Let the ranges of activations be found from what runs inside; nothing else learns.

        >>> prepared = prepare(nn.Linear(2, 2), torch.ones(2, 2))
        >>> with prepared.calibrating(), torch.no_grad():
        ...     _ = prepared(torch.ones(2, 2))
        >>> prepared.unknown
        []
        """
        with kept(self.modules(), "training"):
            self.eval()
            for name, quantizer in self.activations.items():
                quantizer.train(name not in self.given)
            for layer in self.layers.values():
                layer.train(not layer.weight.ready())  # a weight that is computed from parameters
            yield

    @property
    def unknown(self) -> list[str]:
        """Names of the quantisers that have no scale yet, having seen no values but zeros."""
        return [name for name, quantizer in self.activations.items() if not quantizer.ready()]


def prepare(
    model: nn.Module,
    example: Inputs,
    bits: QuantizationPlan | str | None = None,
    *,
    backend: str = "onnxruntime",
    scale: ScaleSource = "observed",
    per_channel: bool = True,
) -> Prepared:
    """Return a copy of ``model`` that rounds every number that an integer runtime rounds.

    Batch norms are folded into the layers before them, with the statistics that they have; weights and biases are
    rounded, and activations wherever a kernel needs it: at inputs of layers, and around additions, concatenations and
    pooling. What it computes is what the exported file computes, up to the rounding of floats. Show it a few batches
    in :meth:`Prepared.calibrating`; it may then be trained on as any module, dropout being off.

    Args:
        model: any module that ``torch.export`` can follow. It may be quantised (``quantize_``): its bits and its
            scales are taken over. It is not changed.
        example: a tensor, or a tuple of those that the model is called with, batch first.
        bits: a plan, or the name of one such as ``"W8A8"``; by default that of an attached model, else ``"W8A8"``.
            What a plan gives 32 bits, or doesn't name, stays in floating point.
        backend: where it is to run, one of :data:`~lightning_effnn.deploy.backend.BACKENDS`.
        scale: ``"observed"`` or ``"learned"``, see :class:`~lightning_effnn.quantization.TensorQuantizer`. Put
            ``prepared.parameters()`` into the optimiser after the first batch has been through.
        per_channel: a scale for each output channel of a weight, or one for all.

    Raises:
        TypeError: ``example`` or ``bits`` is none of these.
        ValueError: no such backend, plan or scale; the model can't be captured, or has no layer to run in integers.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> prepared = prepare(model, torch.randn(2, 1, 4, 4), "W8A8")
    >>> with prepared.calibrating(), torch.no_grad():
    ...     _ = prepared(torch.randn(64, 1, 4, 4))
    >>> list(prepared.layers), list(prepared.activations)
    (['conv2d', 'linear'], ['input_1', 'relu'])
    """
    runtime = find_backend(backend)
    if scale not in ("observed", "learned"):
        raise ValueError(f"scale must be observed or learned, got {scale!r}")
    attachment = Attachment(model) if any(True for _ in hosts_of(model)) else None
    plain = strip_(copy.deepcopy(model)) if attachment else model
    network = capture(plain, example)
    widths = _widths(layers_of(network.graph), plain, attachment, bits)
    placement = place(network.graph, runtime, widths)
    if not any(node in widths for node in placement.integer):
        raise ValueError(
            f"{type(model).__name__} has no layer that {backend} can run in integers: {_reasons(placement)}"
        )
    _insert(network, placement, widths, scale, 0 if per_channel else None)
    prepared = Prepared(network, runtime, placement)
    with torch.no_grad():
        _start_weights(prepared, placement, attachment)
        _take_ranges(prepared, placement, attachment)
    return prepared.train(model.training)


@torch.no_grad()
def calibrate_(prepared: Prepared, batches: Iterable[Any], limit: int | None = None) -> Prepared:
    """Find the ranges of activations from batches, in place; return ``prepared``.

    Args:
        prepared: of :func:`prepare`.
        batches: inputs, or tuples that begin with them, as a loader gives.
        limit: look at so many of them; at all if ``None``.

    Raises:
        ValueError: there is no batch.
    """
    seen = 0
    with prepared.calibrating():
        for batch in batches:
            if limit is not None and seen >= limit:
                break
            prepared(*prepared.inputs_of(batch))
            seen += 1
    if not seen:
        raise ValueError("batches must hold at least one batch to find ranges from, got none")
    return prepared


def _children(network: nn.Module, group: str) -> Iterator[tuple[str, nn.Module]]:
    holder = getattr(network, group, None)
    yield from holder.named_children() if isinstance(holder, nn.Module) else ()


def _widths(
    layers: list[fx.Node], model: nn.Module, attachment: Attachment | None, bits: QuantizationPlan | str | None
) -> dict[fx.Node, Width]:
    if bits is None and attachment is not None:
        bits = plan_of(attachment)
    if isinstance(bits, QuantizationPlan):
        return planned(layers, bits, model)
    if bits is not None and not isinstance(bits, str):
        raise TypeError(f"bits must be a QuantizationPlan or the name of one, got {bits!r}")
    widths = uniform(layers, bits or "W8A8")
    return widths if bits else {**widths, **_baked(widths, model)}


def _baked(widths: dict[fx.Node, Width], model: nn.Module) -> dict[fx.Node, Width]:
    """The bits of weights that are levels already, whatever the default would give them."""
    found = declared_widths(list(widths), model)
    return {layer: Width(bits, widths[layer].activation) for layer, bits in found.items() if bits <= 8}


def _insert(
    network: fx.GraphModule, placement: Placement, widths: dict[fx.Node, Width], scale: ScaleSource, axis: int | None
) -> None:
    graph = network.graph
    quantizers: dict[fx.Node, TensorQuantizer] = {}
    for at, rounding in placement.roundings.items():
        quantizer = quantizers[at] = TensorQuantizer(rounding.bits, scale=scale, signed=rounding.signed)
        network.add_submodule(f"{_ACTIVATIONS}.{at.name}", quantizer)
        with graph.inserting_after(at):
            rounded = graph.call_module(f"{_ACTIVATIONS}.{at.name}", (at,))
        rounded.meta = dict(at.meta)
        readers = set(at.users) - {rounded} if rounding.only is None else rounding.only
        for reader in readers:
            reader.replace_input_with(at, rounded)
    for layer in placement.integer:
        if layer not in widths:
            continue
        source = quantizers[placement.inputs[layer]] if _rounds_bias(layer) else None
        network.add_submodule(f"{_LAYERS}.{layer.name}", LayerQuantizer(widths[layer].weight, source, scale, axis))
        weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
        with graph.inserting_before(layer):
            pair = graph.call_module(f"{_LAYERS}.{layer.name}", (weight, bias))
            parts = [graph.call_function(operator.getitem, (pair, place)) for place in (0, 1)]
        layer.args = (layer.args[0], parts[0], None if bias is None else parts[1], *layer.args[3:])
    graph.lint()
    network.recompile()


def _rounds_bias(layer: fx.Node) -> bool:
    """Whether the kernel takes the bias as an integer: that of a product of matrices adds it to floats."""
    value = layer.meta["val"]
    return not (layer.target is torch.ops.aten.linear.default and value.dim() != 2)


def _start_weights(prepared: Prepared, placement: Placement, attachment: Attachment | None) -> None:
    """Give quantisers of weights their first scales, those of the attachment where there is one."""
    known = attachment.weights if attachment else {}
    layers = prepared.layers
    for node in placement.integer:
        if node.name not in layers:
            continue
        quantizer = layers[node.name].weight
        weight: Any = node.args[1].args[0].args[0]  # type: ignore[union-attr]
        if weight.op != "get_attr":
            continue  # computed from parameters: known at the first batch
        quantizer(prepared.network.get_parameter(weight.target))
        origin = known.get(node.meta["weight"])
        if isinstance(origin, TensorQuantizer):
            origin(attachment.model.get_parameter(node.meta["weight"]))  # type: ignore[union-attr]
            _take_scale(quantizer, origin, node.meta.get("fold"))


def _take_ranges(prepared: Prepared, placement: Placement, attachment: Attachment | None) -> None:
    """Give quantisers of activations the scales that the attachment has, where all layers that read them agree."""
    known = attachment.activations if attachment else {}
    wanted: dict[fx.Node, list[nn.Module | None]] = {}
    for layer, at in placement.inputs.items():
        wanted.setdefault(at, []).append(known.get(layer.meta["module"]))
    for at, origins in wanted.items():
        found = [q for q in origins if isinstance(q, TensorQuantizer) and q.axis is None and q.ready()]
        rounding, same = placement.roundings[at], {(q.bits, float(q.step().detach()), bool(q.is_signed)) for q in found}
        if len(found) < len(origins) or len(same) > 1:
            continue
        ((bits, step, signed),) = same
        if bits == rounding.bits and rounding.signed in (None, signed):
            quantizer = prepared.activations[at.name]
            quantizer._remember(quantizer.scale.new_tensor(step), signed)
            prepared.given.add(at.name)


def _take_scale(quantizer: TensorQuantizer, origin: TensorQuantizer, fold: Tensor | None) -> None:
    step = origin.step() if fold is None else origin.step() * fold.abs()
    if quantizer.axis is None and step.dim():
        raise ValueError(
            "per_channel=False can't hold the scales of channels that folding a batch norm gives: use True"
        )
    quantizer.scale.copy_(step.expand_as(quantizer.scale))


def _reasons(placement: Placement) -> str:
    found = [f"{node.name}: {why}" for node, why in placement.left.items()]
    return "; ".join(found[:5]) or "there is no convolution and no linear layer"
