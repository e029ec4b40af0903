"""What the benchmarks need of other libraries: networks prepared by them, and what of these is to be stored.

Imports are lazy: where a library is missing, :func:`missing` says so and the benchmarks go on with the others.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EXTRA = 'pip install "lightning_effnn[peers]"'


@dataclass
class Stored:
    """What a network is stored as: integer codes with their width in bits, and numbers in fp32."""

    codes: list[tuple[Tensor, int]] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)

    def to_bytes(self, packed: bool = True) -> bytes:
        """Return codes and numbers one after another, without names or shapes.

        Args:
            packed: whether a code takes its width; else it takes a byte, in which zip finds more to save.

        >>> stored = Stored([(torch.tensor([1, -1, 7], dtype=torch.int8), 4)], [torch.ones(1)])
        >>> stored.to_bytes().hex(), len(stored.to_bytes(packed=False))
        ('1f700000803f', 7)
        """
        parts = [_packed(codes, bits if packed else 8) for codes, bits in self.codes]
        return b"".join([*parts, *(numbers.detach().float().numpy().tobytes() for numbers in self.numbers)])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' remarks on deprecated parts of each other."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def missing(library: str) -> str:
    """Return why a library can't be used, or nothing if it can."""
    return "" if importlib.util.find_spec(library) else f"{library} is not installed: {EXTRA}"


def torchao_training(net: nn.Module, images: Tensor, bits: int = 8) -> nn.Module:
    """Return a copy prepared by torchao for quantisation-aware training (PT2E): weights a channel, inputs in 8 bits.

    Args:
        net: in training mode.
        images: an example batch ``[B, ...]``, B at least 2; later batches may have other sizes, from 2 on.
        bits: of the weights.
    """
    return _exported(net, images, bits, training=True)


def torchao_static(net: nn.Module, images: Sequence[Tensor], bits: int = 8) -> nn.Module:
    """Return a copy quantised by torchao without training (PT2E), its inputs' ranges from some batches."""
    with torch.no_grad(), quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        prepared = _exported(copy.deepcopy(net).eval(), images[0], bits, training=False)
        for batch in images:
            prepared(batch)
        return _switchable(convert_pt2e(prepared))


def torchao_converted(prepared: nn.Module) -> nn.Module:
    """Turn a network trained by :func:`torchao_training` into the integer network, and return that."""
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        prepared.eval()
        return _switchable(convert_pt2e(prepared))


def torchao_weight_only(net: nn.Module, bits: int = 8) -> nn.Module:
    """Return a copy of which torchao has quantised the weights of linear layers; it has no such convolutions."""
    net = copy.deepcopy(net).eval()
    with quiet():
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_

        quantize_(net, IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerAxis(0)))
    return net


def fx_training(net: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy prepared by torch.ao's FX flow for training with 8-bit weights and inputs."""
    with quiet():
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        mapping = get_default_qat_qconfig_mapping("x86")
        prepared: nn.Module = prepare_qat_fx(copy.deepcopy(net).train(), mapping, (images,))
    return prepared


def brevitas_training(net: nn.Module, bits: int = 8, *, collect_steps: int = 300) -> nn.Module:
    """Return a copy with brevitas' convolutions and linear layers: weights a channel, inputs in 8 bits.

    Args:
        net: its Conv2d and Linear modules are replaced.
        bits: of the weights.
        collect_steps: steps in which the inputs' ranges are estimated (brevitas' own default); then they are learned.
    """
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    settings: dict[str, Any] = {
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_bit_width": bits,
        "input_quant": Int8ActPerTensorFloat,
        "input_collect_stats_steps": collect_steps,
    }
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                new = qnn.QuantConv2d(
                    child.in_channels, child.out_channels, child.kernel_size, stride=child.stride,
                    padding=child.padding, dilation=child.dilation, groups=child.groups,
                    bias=child.bias is not None, **settings,
                )  # fmt: skip
            elif isinstance(child, nn.Linear):
                new = qnn.QuantLinear(child.in_features, child.out_features, bias=child.bias is not None, **settings)
            else:
                continue
            new.load_state_dict(child.state_dict(), strict=False)
            setattr(parent, name, new)
    return net


def torchao_stored(converted: nn.Module, bits: int) -> Stored:
    """Return what a network converted by the PT2E flow has to keep: codes, scales, biases, ranges of inputs."""
    graph = converted.graph
    assert isinstance(graph, torch.fx.Graph)
    state = converted.state_dict()
    stored, ranges = Stored(), set()
    for node in graph.nodes:
        if node.op == "get_attr" and node.users:
            tensor = state[node.target]
            if tensor.dtype == torch.int8:
                stored.codes.append((tensor, bits))
            elif tensor.is_floating_point():
                stored.numbers.append(tensor)
            elif bool(tensor.any()):  # zero points of weights are zero
                raise ValueError(f"{node.target} is neither codes, nor numbers, nor zeros")
        elif node.op == "call_function" and "quantize_per_tensor" in str(node.target):
            ranges.add((float(node.args[1]), float(node.args[2])))
    stored.numbers.append(torch.tensor(sorted(ranges)))
    return stored


def weight_only_stored(net: nn.Module, bits: int) -> Stored:
    """Return what a network of :func:`torchao_weight_only` has to keep."""
    stored = Stored()
    for tensor in net.state_dict().values():
        if hasattr(tensor, "qdata"):
            stored.codes.append((tensor.qdata, bits))
            stored.numbers.append(tensor.scale)
        elif tensor.is_floating_point():
            stored.numbers.append(tensor)
    return stored


def brevitas_stored(net: nn.Module, bits: int) -> Stored:
    """Return what a network of :func:`brevitas_training` has to keep, in evaluation mode.

    A normalisation right behind a convolution costs a shift a channel: its scale goes into that of the codes.
    """
    stored = Stored()
    folded = {
        norm
        for parent in net.modules()
        if isinstance(parent, nn.Sequential)
        for layer, norm in pairwise(parent)
        if hasattr(layer, "quant_weight") and isinstance(norm, nn.BatchNorm2d)
    }
    module: Any
    for module in net.modules():
        if hasattr(module, "quant_weight"):
            weight = module.quant_weight()
            codes = weight.int(float_datatype=False)
            if not torch.equal(codes.to(weight.value.dtype) * weight.scale, weight.value):
                raise ValueError("codes and scales don't give the weight that the network ran with")
            stored.codes.append((codes, bits))
            stored.numbers += [weight.scale, *([] if module.bias is None else [module.bias])]
            stored.numbers.append(module.input_quant.scale())
        elif isinstance(module, nn.BatchNorm2d):
            rest = () if module in folded else (module.weight, module.running_mean, module.running_var)
            stored.numbers += [tensor for tensor in (module.bias, *rest) if tensor is not None]
    return stored


def _packed(codes: Tensor, bits: int) -> bytes:
    bytes_ = codes.detach().flatten().to(torch.int8).numpy().view(np.uint8)
    return np.packbits(np.unpackbits(bytes_[:, None], axis=1)[:, 8 - bits :]).tobytes()


def _exported(net: nn.Module, images: Tensor, bits: int, training: bool) -> nn.Module:
    """The network's graph, prepared with torchao's quantiser for x86, but for the weights' width its default."""
    with quiet():
        from torchao.quantization.pt2e import quantize_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        default = x86.get_default_x86_inductor_quantization_config(is_qat=training)
        half = 1 << (bits - 1)
        config = replace(default, weight=replace(default.weight, quant_min=-half, quant_max=half - 1))
        prepare = quantize_pt2e.prepare_qat_pt2e if training else quantize_pt2e.prepare_pt2e
        batch = {0: torch.export.Dim("batch", min=2, max=1 << 16)}
        graph = torch.export.export(net, (images,), dynamic_shapes=(batch,)).module()
        return _switchable(prepare(graph, x86.X86InductorQuantizer().set_global(config)))


def _switchable(net: nn.Module) -> nn.Module:
    """Let ``train()`` and ``eval()`` switch an exported network, which refuses them otherwise; they return nothing."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval

    allow_exported_model_train_eval(net)
    return net
