"""From a trace and an accelerator to a report: the one call most users need.

``estimate`` prices what a trace recorded, ``estimate_layers`` layers given as table rows. Each distinct layer
shape is mapped once and remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.engines import EngineName, engine_for
from lightning_effnn.hardware.report import CostReport
from lightning_effnn.hardware.rows import operation
from lightning_effnn.hardware.trace import Trace


def estimate(trace: Trace, accelerator: str | Path | Accelerator, engine: EngineName = "closed_form") -> CostReport:
    """What a traced run costs on a chip.

    Args:
        trace: from :func:`lightning_effnn.hardware.trace`.
        accelerator: an :class:`Accelerator`, a preset's name, or the path of a YAML file.
        engine: ``closed_form``, or ``zigzag`` to have zigzag-dse map the layers (extra ``zigzag``; seconds a layer).

    Returns:
        A :class:`CostReport`; energy in uJ, time in us, for ``trace.batch_size`` inferences.

    Raises:
        ValueError: unknown preset or engine, a wrong YAML file, or a layer for which a memory of it is too small.
        TypeError: no trace, such as a model.
        ImportError: the engine is not installed; the message names the extra.

    >>> import torch
    >>> from lightning_effnn import hardware
    >>> report = hardware.estimate(hardware.trace(torch.nn.Linear(64, 10), torch.rand(1, 64)), "tpu_like")
    >>> report.macs, report.coverage
    (640, 1.0)
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace is a {type(trace).__name__}: what hardware.trace(model, x) returns is needed")
    chip = Accelerator.load(accelerator)
    return engine_for(chip, engine).estimate(trace, chip)


def estimate_layers(
    rows: Sequence[Mapping[str, Any]], accelerator: str | Path | Accelerator, engine: EngineName = "closed_form"
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
        ValueError: an unknown engine, preset or kind; a chip that prices whole modules; a column that is none of these,
            or a value out of range: the message gives row, column, value and what would be accepted.

    >>> row = {"name": "conv1", "kind": "conv", "K": 20, "OY": 24, "OX": 24, "FY": 5, "FX": 5, "stride": 1}
    >>> estimate_layers([row], "tpu_like").rows()[0]["macs"]
    288000
    """
    chip = Accelerator.load(accelerator)
    return engine_for(chip, engine).estimate_operations([operation(row, i) for i, row in enumerate(rows)], chip)
