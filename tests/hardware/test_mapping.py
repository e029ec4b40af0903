"""The search against ZigZag's own results (recipes/benchmarks/reference) and against itself."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_effnn.recipes.benchmarks as benchmarks
from lightning_effnn.hardware import Accelerator, Operation, estimate_layers, mapping
from lightning_effnn.hardware.mapping import map_layers
from lightning_effnn.hardware.nest import LOOP_LIMIT, Problem
from lightning_effnn.hardware.pricing import MAC, Component

REFERENCE = Path(benchmarks.__file__).parent / "reference"
CHIPS = ("tpu_like", "eyeriss_like", "edge_tpu_like")


def reference(chip):
    with (REFERENCE / "zigzag.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["accelerator"] == chip]


@pytest.fixture(scope="module", params=CHIPS)
def compared(request):
    rows = reference(request.param)
    found = estimate_layers(rows, request.param)
    return rows, found


def test_energy_of_memories_is_that_of_the_simulator(compared):
    rows, found = compared
    mine = [sum(e for k, e in layer.cost.components.items() if k != MAC) for layer in found.layers]
    errors = np.abs(np.array(mine) / np.array([float(r["mem_energy_pJ"]) for r in rows]) - 1)
    assert np.median(errors) < 1e-6
    assert np.quantile(errors, 0.9) < 1e-3
    assert errors.max() < 0.02


def test_latency_is_that_of_the_simulator(compared):
    rows, found = compared
    mine = np.array([row["latency_cycles"] for row in found.rows()])
    errors = np.abs(mine / np.array([float(r["latency_cycles"]) for r in rows]) - 1)
    assert np.median(errors) < 1e-6
    assert np.quantile(errors, 0.9) < 0.01
    assert errors.max() < 0.05


def test_energy_of_8_bit_multiply_accumulates_is_that_of_the_simulator(compared):
    rows, found = compared
    for row, layer in zip(rows, found.layers, strict=True):
        if row["w_bits"] == row["i_bits"] == "8":
            assert layer.cost.components[MAC] == pytest.approx(float(row["mac_energy_pJ"]))


def test_rows_keep_order_and_names(compared):
    rows, found = compared
    assert [r["name"] for r in found.rows()] == [r["name"] for r in rows]


sizes = st.sampled_from([1, 2, 3, 5, 8, 13, 16, 31, 64, 100, 256])
layers = st.builds(
    lambda k, c, y, f, s: Operation(
        name="l", op="conv", kind="conv", K=k, C=c, OY=y, OX=y, FY=f, FX=f, stride_y=s, stride_x=s
    ),
    sizes, sizes, st.sampled_from([1, 4, 7, 14, 28]), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]),
)  # fmt: skip


@given(layers, st.sampled_from(CHIPS))
@settings(max_examples=40)
def test_a_mapping_runs_every_loop_and_moves_every_element(operation, chip):
    accelerator = Accelerator.from_preset(chip)
    problem = Problem.of(operation, accelerator)
    (mapped,) = map_layers([problem], accelerator)
    covered = {d: f for d, f in problem.spatial}
    for dim, trips in mapped.order:
        index = ("B", "G", "K", "C", "OY", "OX", "FY", "FX").index(dim)
        covered[index] = covered.get(index, 1) * trips
    for index, extent in enumerate(problem.extents):
        assert covered.get(index, 1) >= extent
    for operand, held in mapped.held.items():
        assert list(held) == sorted(held)
        assert held[-1] == len(mapped.order), operand
    # whatever the order, each operand crosses the DRAM port at least once
    for link in mapped.links:
        if link.memory == "dram":
            port = accelerator.memories[-1].ports[0]
            elements = {"W": operation.weights, "I": 0, "O": operation.K * operation.OY * operation.OX}[link.operand]
            moved = link.to_low + link.from_low
            assert moved * port.max_bits >= elements * 8 * 0.999


@given(layers)
@settings(max_examples=15)
def test_larger_buffers_never_cost_more_energy(operation):
    chip = Accelerator.from_preset("tpu_like")
    larger = replace(
        chip,
        name="larger",
        memories=tuple(replace(m, size_bits=m.size_bits * 16) if m.name == "sram_2MB" else m for m in chip.memories),
    )
    small, large = (
        sum(link.energy_pJ for link in map_layers([Problem.of(operation, c)], c)[0].links) for c in (chip, larger)
    )
    assert large <= small * (1 + 1e-9)


def test_loops_are_merged_down_to_the_limit():
    operation = Operation(name="l", op="conv", kind="conv", K=1024, C=1024, OY=64, OX=64, FY=3, FX=3)
    problem = Problem.of(operation, Accelerator.from_preset("tpu_like"))
    loops = problem.loops()
    assert len(loops) == LOOP_LIMIT
    assert math.prod(f for _, f in loops) == (1024 // 32) ** 2 * 64 * 64 * 9


def test_a_number_wider_than_the_registers_is_mapped():
    row = {
        "name": "fp32 on an 8-bit chip",
        "kind": "gemm",
        "B": 4,
        "K": 10,
        "C": 84,
        "w_bits": 32,
        "i_bits": 32,
        "o_bits": 32,
    }
    report = estimate_layers([row], "edge_tpu_like")
    assert (
        report.energy_uJ > estimate_layers([{**row, "w_bits": 8, "i_bits": 8, "o_bits": 8}], "edge_tpu_like").energy_uJ
    )


def test_three_operands_can_share_one_buffer(tmp_path):
    import yaml

    from lightning_effnn.hardware.accelerator import PRESETS

    text = yaml.safe_load((PRESETS / "tpu_like.yaml").read_text())
    text["name"] = "unified"
    sram = text["memories"]["sram_2MB"]
    sram["operands"] = ["I", "W", "O"]
    sram["ports"][0]["serves"].append("W to_low")
    sram["ports"][1]["serves"].append("W from_high")
    path = tmp_path / "unified.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    row = {"name": "l", "kind": "conv", "K": 256, "C": 256, "OY": 14, "OX": 14, "FY": 3, "FX": 3, "B": 8}
    unified, split = estimate_layers([row], path), estimate_layers([row], "tpu_like")
    # weights that stay on the chip are read from DRAM once
    dram = Component("dram", "W")
    assert unified.layers[0].cost.components[dram] <= split.layers[0].cost.components[dram]


def test_registers_that_hold_more_than_the_memory_around_them_are_used_in_part():
    chip = Accelerator.systolic(64, 64)
    operation = Operation(name="l", op="conv", kind="conv", K=128, C=64, OY=12, OX=12, FY=3, FX=3)
    problem = Problem.of(operation, chip)
    (mapped,) = map_layers([problem], chip)
    register, sram, _ = mapped.held["W"]
    reread = math.prod(trips for dim, trips in mapped.order[sram:] if dim in ("G", "K", "C", "FY", "FX"))
    # what all registers hold of the weights is in the buffer too
    assert operation.weights * 8 / reread <= chip.levels("W")[1].size_bits
    inside = math.prod(trips for dim, trips in mapped.order[:register] if dim in ("K", "C", "FY", "FX"))
    assert inside * 64 * 64 * 8 <= chip.levels("W")[1].size_bits
    larger = replace(
        chip, memories=tuple(replace(m, size_bits=2**24) if "sram_weight" in m.name else m for m in chip.memories)
    )
    (roomy,) = map_layers([Problem.of(operation, larger)], larger)
    assert sum(link.energy_pJ for link in roomy.links) <= sum(link.energy_pJ for link in mapped.links)


def test_layers_searched_in_small_batches_are_mapped_as_all_at_once(monkeypatch):
    chip = Accelerator.from_preset("eyeriss_like")
    problems = [
        Problem.of(Operation(name="l", op="conv", kind="conv", K=k, C=24, OY=6, OX=6, FY=3, FX=3), chip)
        for k in (20, 30, 42, 66, 70)
    ]
    mapping.forget_mappings()
    together = map_layers(problems, chip)
    sizes = []
    searched = mapping._search
    monkeypatch.setattr(mapping, "_search", lambda nest: (sizes.append(len(nest.problems)), searched(nest))[1])
    monkeypatch.setattr(mapping, "_MOST_AT_ONCE", 2 * math.factorial(LOOP_LIMIT))
    mapping.forget_mappings()
    assert map_layers(problems, chip) == together
    assert sum(sizes) == 5
    assert max(sizes) == 2
