"""A second opinion: layers mapped by zigzag-dse itself (MIT; extra ``zigzag``).

The chip and each layer are written in ZigZag's own formats, its LOMA search runs (uneven mapping, least energy,
six loop factors), and its word accesses and cycles come back as a :class:`MappedLayer`, so that everything
on top - formats, zeros, reports - is the same for both engines. A layer takes seconds; shapes are remembered.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.progress import track

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.latency import Timing
from lightning_effnn.hardware.mapping import Link, MappedLayer
from lightning_effnn.hardware.nest import LOOP_LIMIT, OPERANDS, Problem
from lightning_effnn.hardware.operation import DIMENSIONS

_NAMES = {"I": "I1", "W": "I2", "O": "O"}
_WAYS = {"from_high": "fh", "to_low": "tl", "from_low": "fl", "to_high": "th"}
_cache: dict[tuple[object, Problem], MappedLayer] = {}


def map_layers(problems: Sequence[Problem], accelerator: Accelerator) -> list[MappedLayer]:
    """ZigZag's mapping of each problem.

    Raises:
        ImportError: zigzag-dse is not installed; the message names the extra.
        ValueError: ZigZag finds no mapping; the message gives the layer's extents.
    """
    try:
        import zigzag  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "engine='zigzag' needs zigzag-dse (Python 3.11 or later): pip install 'lightning_effnn[zigzag]'"
        ) from error
    new = [p for p in dict.fromkeys(problems) if (accelerator.key, p) not in _cache]
    for problem in track(new, "zigzag", disable=not new):
        _cache[accelerator.key, problem] = _map(problem, accelerator)
    return [_cache[accelerator.key, p] for p in problems]


def _map(problem: Problem, chip: Accelerator) -> MappedLayer:
    from zigzag.mapping.temporal_mapping import TemporalMappingType
    from zigzag.opt.loma.engine import NoValidLoopOrderingFoundException
    from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
    from zigzag.stages.main import MainStage
    from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
    from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
    from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
    from zigzag.stages.parser.workload_parser import WorkloadParserStage
    from zigzag.stages.results.reduce_stages import MinimalEnergyStage
    from zigzag.stages.workload_iterator import WorkloadStage

    stages: list[Any] = [
        WorkloadParserStage, AcceleratorParserStage, WorkloadStage, MinimalEnergyStage, SpatialMappingGeneratorStage,
        MinimalEnergyStage, TemporalMappingGeneratorStage, CostModelStage,
    ]  # fmt: skip
    verbosity = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it reports every limit of an unrolling
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for name, content in (
                ("accelerator", _accelerator(chip, problem)),
                ("workload", [_layer(problem)]),
                ("mapping", [_spatial(chip, problem)]),
            ):
                files[name] = str(Path(folder) / f"{name}.yaml")
                Path(files[name]).write_text(yaml.safe_dump(content, sort_keys=False))
            stage: Any = MainStage(
                stages,
                **files,
                loma_lpf_limit=LOOP_LIMIT,
                nb_mappings_generated=1,
                enable_mix_spatial_mapping_generation=False,
                access_same_data_considered_as_no_access=True,
                temporal_mapping_type=TemporalMappingType.UNEVEN,
            )
            found = stage.run()
    except (NoValidLoopOrderingFoundException, AssertionError) as error:
        extents = dict(zip(DIMENSIONS, problem.extents, strict=True))
        raise ValueError(f"zigzag finds no mapping of {extents} on {chip.name}: {error}") from error
    finally:
        logging.disable(verbosity)
    return _collect(found[0][0], chip)


def _collect(evaluation: Any, chip: Accelerator) -> MappedLayer:
    from zigzag.hardware.architecture.memory_port import DataDirection

    ways = {
        "to_low": DataDirection.RD_OUT_TO_LOW,
        "from_low": DataDirection.WR_IN_BY_LOW,
        "to_high": DataDirection.RD_OUT_TO_HIGH,
        "from_high": DataDirection.WR_IN_BY_HIGH,
    }
    accesses = {operand.name: levels for operand, levels in evaluation.memory_word_access.items()}
    loops = {operand.name: levels for operand, levels in evaluation.temporal_mapping.mapping_dic_stationary.items()}
    links, held = [], {}
    for op in OPERANDS:
        counts = 0
        within = []
        for level, memory in enumerate(chip.levels(op)):
            flows = {way: float(accesses[op][level].get(direction)) for way, direction in ways.items()}
            links.append(Link(memory.name, op, level, read_pJ=memory.read_pJ, write_pJ=memory.write_pJ, **flows))
            counts += len(loops[op][level])
            within.append(counts)
        held[op] = tuple(within)
    order = tuple((loop[0].name, int(loop[1])) for level in loops["O"] for loop in level)
    timing = Timing(
        compute=evaluation.ideal_temporal_cycle,
        register_stall=0.0,
        buffer_stall=evaluation.stall_slack_comb,  # of which port, it doesn't say
        dram_stall=0.0,
        load=evaluation.data_onloading_cycle,
        unload=evaluation.data_offloading_cycle,
        drain=evaluation.systolic_drain_cycle,
    )
    return MappedLayer(order, held, tuple(links), timing)


def _axes(chip: Accelerator) -> dict[str, str]:
    """ZigZag names array dimensions D1, D2, ..."""
    return {dim: f"D{i + 1}" for i, dim in enumerate(chip.array)}


def _accelerator(chip: Accelerator, problem: Problem) -> dict[str, Any]:
    axes = _axes(chip)
    widths = dict(zip(("W", "I", "O"), problem.bits, strict=False))  # the third is the partial sum
    memories: dict[str, Any] = {}
    for memory in chip.memories:
        innermost = [op for op in memory.operands if chip.levels(op)[0] is memory]
        size = max(memory.size_bits, sum(widths[op] for op in innermost))  # a register holds at least one element
        memories[memory.name] = {
            "size": size,
            "r_cost": memory.read_pJ,
            "w_cost": memory.write_pJ,
            "area": 0,
            "latency": 1,
            "operands": [_NAMES[op] for op in memory.operands],
            "ports": [
                {
                    "name": f"{ {'read': 'r', 'write': 'w', 'read_write': 'rw'}[port.kind] }_port_{i + 1}",
                    "type": port.kind,
                    "bandwidth_min": port.min_bits,
                    "bandwidth_max": port.max_bits,
                    "allocation": [f"{_NAMES[op]}, {_WAYS[way]}" for op, way in port.serves],
                }
                for i, port in enumerate(memory.ports)
            ],
            "served_dimensions": [axes[dim] for dim in memory.served_dims],
        }
    return {
        "name": chip.name,
        "memories": memories,
        "operational_array": {
            "unit_energy": chip.energies.int8_mac_pJ,
            "unit_area": 1,
            "dimensions": list(axes.values()),
            "sizes": list(chip.array.values()),
            "systolic_dimensions": [axes[dim] for dim in chip.systolic_dims],
        },
    }


def _layer(problem: Problem) -> dict[str, Any]:
    (sy, sx), (dy, dx) = problem.stride, problem.dilation
    w, i, partial, out = problem.bits
    return {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
        "dimension_relations": [f"ix={sx}*ox+{dx}*fx", f"iy={sy}*oy+{dy}*fy"],
        "loop_dims": list(DIMENSIONS),
        "loop_sizes": list(problem.extents),
        "operand_precision": {"W": w, "I": i, "O": partial, "O_final": out},
        "operand_source": {"W": 0, "I": 0},
    }


def _spatial(chip: Accelerator, problem: Problem) -> dict[str, Any]:
    along = zip(_axes(chip).values(), problem.spatial, strict=True)
    return {
        "name": "default",
        "spatial_mapping": {axis: [f"{DIMENSIONS[dim]}, {size}"] for axis, (dim, size) in along},
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
    }
