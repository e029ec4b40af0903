"""From a trace and an accelerator to a report: the one call most users need.

``estimate`` prices what a trace recorded, ``estimate_layers`` layers given as table rows. Each distinct layer
shape is mapped once and remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_effnn.hardware import sponge_paper
from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.mapping import MappedLayer, map_layers
from lightning_effnn.hardware.nest import Problem
from lightning_effnn.hardware.operation import Operation
from lightning_effnn.hardware.pricing import Cost, Storage, price_mac, price_vector
from lightning_effnn.hardware.report import CostReport, LayerCost
from lightning_effnn.hardware.rows import operation
from lightning_effnn.hardware.systolic import compute_cycles

if TYPE_CHECKING:
    from lightning_effnn.hardware.trace import Trace

Engine = Literal["closed_form", "zigzag"]
Mapper = Callable[[Sequence[Problem], Accelerator], list[MappedLayer]]


def estimate(trace: Trace, accelerator: str | Path | Accelerator, engine: Engine = "closed_form") -> CostReport:
    """What a traced run costs on a chip.

    Args:
        trace: from :func:`lightning_effnn.hardware.trace`.
        accelerator: an :class:`Accelerator`, a preset's name, or the path of a YAML file.
        engine: ``closed_form``, or ``zigzag`` to have zigzag-dse map the layers (extra ``zigzag``; seconds a layer).

    Returns:
        A :class:`CostReport`; energy in uJ, time in us, for ``trace.batch_size`` inferences.

    Raises:
        ValueError: unknown preset or engine, or a wrong YAML file.
        ImportError: the engine is not installed; the message names the extra.

    >>> import torch
    >>> from lightning_effnn import hardware
    >>> report = hardware.estimate(hardware.trace(torch.nn.Linear(64, 10), torch.rand(1, 64)), "tpu_like")
    >>> report.macs, report.coverage
    (640, 1.0)
    """
    chip = Accelerator.load(accelerator)
    if chip.model == "shumailov2021":
        return sponge_paper.estimate(trace, chip)
    costed = [op for op in trace.operations if op.phase != "loss"]
    layers = _price(_with_stored_outputs(costed), chip, _mapper(engine))
    return CostReport(
        accelerator=chip,
        layers=tuple(layers),
        coverage=trace.coverage,
        unknown=dict(trace.unknown),
        weights_bits=sum(
            _parameter_bits(p.elements, p.format.bits, p.nonzero / p.elements, chip) for p in trace.parameters
        ),
    )


def estimate_layers(
    rows: Sequence[Mapping[str, Any]], accelerator: str | Path | Accelerator, engine: Engine = "closed_form"
) -> CostReport:
    """What layers given as rows cost; no model is needed.

    Args:
        rows: one mapping a layer, with ``name``, ``kind`` (``conv``, ``depthwise`` or ``gemm``), the loop extents
            ``B G K C OY OX FY FX`` (1 where absent), ``stride``, ``w_bits``, ``i_bits``, ``o_bits`` (8 where absent),
            ``o_partial_bits`` (the chip's where absent), ``w_density``, ``i_density`` and ``o_density`` (1 where
            absent). A product of ``[B, C]`` by ``[C, K]`` has its rows in ``B``; channels of a depthwise layer are
            ``G``. Instead of kind and extents SCALE-Sim's columns are understood too (``layer, ifmap_h, ifmap_w,
            filter_h, filter_w, channels, filters``). Values may be text, as read from a CSV, and a blank is a column
            that the row hasn't. Results in the tables of ZigZag and SCALE-Sim (``energy_pJ``, ``total_cycles``, the
            chip they ran on) are passed over.
        accelerator, engine: as in :func:`estimate`.

    Raises:
        ValueError: an unknown engine, preset or kind; a column that is none of these, or a value out of range: the
            message gives row, column, value and what would be accepted.

    >>> row = {"name": "conv1", "kind": "conv", "K": 20, "OY": 24, "OX": 24, "FY": 5, "FX": 5, "stride": 1}
    >>> estimate_layers([row], "tpu_like").rows()[0]["macs"]
    288000
    """
    chip = Accelerator.load(accelerator)
    if chip.model == "shumailov2021":
        raise ValueError("shumailov2021 hooks the modules of a network: it needs a trace, not layer rows")
    operations = [operation(row, i) for i, row in enumerate(rows)]
    layers = _price(operations, chip, _mapper(engine))
    bits = sum(_parameter_bits(op.weights, op.w_format.bits, op.w_density, chip) for op in operations)
    return CostReport(accelerator=chip, layers=tuple(layers), coverage=1.0, unknown={}, weights_bits=bits)


def _mapper(engine: str) -> Mapper:
    if engine == "closed_form":
        return map_layers
    if engine == "zigzag":
        from lightning_effnn.hardware import zigzag

        return zigzag.map_layers
    raise ValueError(f"engine={engine!r}: one of 'closed_form', 'zigzag' is needed")


def _price(operations: Sequence[Operation], chip: Accelerator, mapper: Mapper) -> list[LayerCost]:
    macs = [op for op in operations if op.is_mac]
    mapped = iter(mapper([Problem.of(op, chip) for op in macs], chip))
    layers = []
    for op in operations:
        if not op.is_mac:
            cost, dense = (price_vector(op, chip, Storage.of(op, dense)) for dense in (False, True))
            layers.append(LayerCost(op, None, cost, dense))
            continue
        mapping = next(mapped)
        cycles = compute_cycles(op, chip) if chip.model == "systolic" else None
        cost, dense = (price_mac(op, mapping, chip, Storage.of(op, dense), cycles) for dense in (False, True))
        layers.append(LayerCost(op, mapping, cost, dense))
    return layers


def _with_stored_outputs(operations: Sequence[Operation]) -> list[Operation]:
    """What a fused operation makes of a result is what the operation before it stores."""
    result: list[Operation] = []
    host = -1
    for op in operations:
        if op.fused and host >= 0:
            result[host] = replace(result[host], o_format=op.o_format, o_density=op.o_density)
        else:
            host = len(result)
        result.append(op)
    return result


def _parameter_bits(elements: int, bits: int, density: float, chip: Accelerator) -> float:
    return float(elements * chip.zeros["weights"].stored_bits(bits, density))


__all__ = ["Cost", "Engine", "estimate", "estimate_layers"]
