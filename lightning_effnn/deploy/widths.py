"""How many bits the layers of a captured graph get: from a plan, from what is attached, or by rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn

from lightning_effnn.deploy.operations import kind
from lightning_effnn.formats import FixedPoint
from lightning_effnn.formats.declared import declared_formats
from lightning_effnn.quantization import PRESETS, Attachment, QuantizationPlan, TensorQuantizer

FLOAT = 32


class Width(NamedTuple):
    """Bits of a layer's weight and of its input, 32 for a number that stays in floating point."""

    weight: int
    activation: int


def layers_of(graph: fx.Graph) -> list[fx.Node]:
    """Return the convolutions and linear layers of a graph in the order that they run in."""
    return [node for node in graph.nodes if kind(node) in ("convolution", "linear")]


def uniform(layers: Sequence[fx.Node], name: str) -> dict[fx.Node, Width]:
    """Return the widths of a preset plan for layers; the first and the last have 8 bits, or more where the plan has.

    Args:
        layers: in the order that they run in.
        name: one of :data:`lightning_effnn.quantization.PRESETS`.

    Raises:
        ValueError: there is no such plan.
    """
    match = re.fullmatch(r"W(\d+)A(\d+)", name) if name in PRESETS else None
    if match is None:
        raise ValueError(f"bits must be a QuantizationPlan or one of {', '.join(PRESETS)}, got {name!r}")
    width = Width(int(match[1]), int(match[2]))
    ends = {layers[0], layers[-1]} if layers else set()
    outer = Width(max(8, width.weight), max(8, width.activation))
    return {layer: outer if layer in ends else width for layer in layers}


def planned(layers: Sequence[fx.Node], plan: QuantizationPlan, model: nn.Module) -> dict[fx.Node, Width]:
    """Return the widths that ``plan`` gives the layers of ``model``, 32 where it names no weight or no input.

    Raises:
        ValueError: the plan names what the model doesn't have.
    """
    plan.check(model)
    aliases = _aliases(model)
    weights = {aliases.get(name, name): bits for name, bits in plan.weights.items()}
    modules = {id(module): name for name, module in model.named_modules()}
    inputs = {modules[id(model.get_submodule(name))]: bits for name, bits in plan.activations.items()}
    return {
        layer: Width(
            weights.get(aliases.get(layer.meta["weight"], layer.meta["weight"]), FLOAT),
            inputs.get(layer.meta["module"], FLOAT),
        )
        for layer in layers
    }


def plan_of(attachment: Attachment) -> QuantizationPlan:
    """Return the plan that an attached model is quantised by.

    Raises:
        TypeError: a quantiser isn't a :class:`~lightning_effnn.quantization.TensorQuantizer`, whose bits are known.
    """
    groups = (attachment.weights, attachment.activations)
    for name, quantizer in ((name, q) for group in groups for name, q in group.items()):
        if not isinstance(quantizer, TensorQuantizer):
            raise TypeError(
                f"the quantiser of {name!r} is a {type(quantizer).__name__}, whose levels are not known here"
            )
    weights, activations = ({name: int(q.bits) for name, q in group.items()} for group in groups)  # type: ignore[arg-type]
    return QuantizationPlan(weights, activations)


def declared_widths(layers: Sequence[fx.Node], model: nn.Module) -> dict[fx.Node, int]:
    """Return the bits of weights that are on the levels of a fixed-point format already, as ``bake_`` leaves them."""
    formats = declared_formats(model)
    aliases = _aliases(model)
    by_first = {aliases.get(name, name): form for name, form in formats.items()}
    found = {}
    for layer in layers:
        form = by_first.get(aliases.get(layer.meta["weight"], layer.meta["weight"]))
        if isinstance(form, FixedPoint) and form.signed:
            found[layer] = form.bits
    return found


def _aliases(model: nn.Module) -> dict[str, str]:
    """The first name of each parameter by all of its names."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
