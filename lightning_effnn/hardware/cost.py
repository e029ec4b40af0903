"""From a trace and an accelerator to a report: the one call most users need.

``estimate`` prices what a trace recorded, ``estimate_layers`` layers given as table rows. Each distinct layer
shape is mapped once and remembered.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_effnn.formats import FixedPoint
from lightning_effnn.hardware import sponge_paper
from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.mapping import MappedLayer, map_layers
from lightning_effnn.hardware.nest import Problem
from lightning_effnn.hardware.operation import DIMENSIONS, MAC_KINDS, Operation
from lightning_effnn.hardware.pricing import Cost, Storage, price_mac, price_vector
from lightning_effnn.hardware.report import CostReport, LayerCost
from lightning_effnn.hardware.systolic import compute_cycles

if TYPE_CHECKING:
    from lightning_effnn.hardware.trace import Trace

Engine = Literal["closed_form", "zigzag"]
Mapper = Callable[[Sequence[Problem], Accelerator], list[MappedLayer]]
_SCALESIM = {"ifmap_h", "ifmap_w", "filter_h", "filter_w", "channels", "filters"}


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
            ``B G K C OY OX FY FX`` (1 where absent), ``stride``, ``w_bits``, ``i_bits``, ``o_bits`` (8 where absent)
            and ``o_partial_bits`` (the chip's where absent); ``w_density`` and ``i_density`` are taken too. Rows in
            SCALE-Sim's columns (``layer, ifmap_h, ifmap_w, filter_h, filter_w, channels, filters, stride``) are
            understood as well. Values may be text, as read from a CSV.
        accelerator, engine: as in :func:`estimate`.

    Raises:
        ValueError: a row with an unknown kind or column, or an extent that is not a positive integer.

    >>> row = {"name": "conv1", "kind": "conv", "K": 20, "OY": 24, "OX": 24, "FY": 5, "FX": 5, "stride": 1}
    >>> estimate_layers([row], "tpu_like").rows()[0]["macs"]
    288000
    """
    chip = Accelerator.load(accelerator)
    if chip.model == "shumailov2021":
        raise ValueError("shumailov2021 hooks the modules of a network: it needs a trace, not layer rows")
    operations = [_operation(row, i) for i, row in enumerate(rows)]
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


def _operation(row: Mapping[str, Any], index: int) -> Operation:
    where = f"row {index} ({row.get('name', row.get('layer', 'unnamed'))})"
    if "ifmap_h" in row:
        row = _from_scalesim(row, where)
    kind = row.get("kind", "conv")
    if kind not in MAC_KINDS:
        near = difflib.get_close_matches(str(kind), MAC_KINDS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: kind={kind!r}, one of {', '.join(MAC_KINDS)} is needed{hint}")
    stride = _positive(row, "stride", where, 1)
    partial = row.get("o_partial_bits")
    fields: dict[str, Any] = {dim: _positive(row, dim, where, 1) for dim in DIMENSIONS}
    for op in ("w", "i", "o"):
        fields[f"{op}_format"] = FixedPoint(_positive(row, f"{op}_bits", where, 8))
        fields[f"{op}_density"] = _share(row, f"{op}_density", where)
    if partial not in (None, ""):
        fields["accumulator_bits"] = _positive(row, "o_partial_bits", where, 1)
    return Operation(
        name=str(row.get("name", f"layer{index}")),
        op=str(kind),
        kind=kind,
        stride_y=stride,
        stride_x=stride,
        **fields,
    )


def _from_scalesim(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The simulator gives sizes of padded inputs, this package those of outputs; a last partial window counts."""
    missing = _SCALESIM - set(row)
    if missing:
        raise ValueError(f"{where}: column {sorted(missing)[0]!r} is missing")
    stride = _positive(row, "stride", where, 1)
    size = {key: _positive(row, key, where, 1) for key in _SCALESIM}
    for axis in ("h", "w"):
        if size[f"filter_{axis}"] > size[f"ifmap_{axis}"]:
            raise ValueError(f"{where}: filter_{axis}={size[f'filter_{axis}']} exceeds ifmap_{axis}")
    return {
        "name": row.get("name", row.get("layer")),
        "kind": "conv",
        "K": size["filters"],
        "C": size["channels"],
        "OY": -(-(size["ifmap_h"] - size["filter_h"]) // stride) + 1,
        "OX": -(-(size["ifmap_w"] - size["filter_w"]) // stride) + 1,
        "FY": size["filter_h"],
        "FX": size["filter_w"],
        "stride": stride,
    }


def _positive(row: Mapping[str, Any], key: str, where: str, default: int) -> int:
    value = row.get(key, default)
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or number != float(value):
        raise ValueError(f"{where}: {key}={value!r}, a positive integer is needed")
    return number


def _share(row: Mapping[str, Any], key: str, where: str) -> float:
    value = float(row.get(key, 1.0))
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: {key}={value!r}, a number from 0 to 1 is needed")
    return value


__all__ = ["Cost", "Engine", "estimate", "estimate_layers"]
