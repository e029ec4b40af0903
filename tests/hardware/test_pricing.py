"""What zeros save, what vector operations cost, and the differentiable form."""

import dataclasses

import pytest
import torch

from lightning_effnn.hardware import (
    Accelerator,
    CostReport,
    EnergyModel,
    Operation,
    Trace,
    Zeros,
    estimate,
    estimate_layers,
)
from lightning_effnn.hardware.pricing import MAC, VECTOR, Component

ROW = {"name": "l", "kind": "conv", "K": 64, "C": 64, "OY": 56, "OX": 56, "FY": 3, "FX": 3}
FC = {"name": "fc", "kind": "gemm", "K": 1000, "C": 512}


def chip(compute="none", storage="dense", stored_in=(), what="activations", base="eyeriss_like"):
    plain = {"weights": Zeros(), "activations": Zeros()}
    plain[what] = Zeros(compute, storage, 5, stored_in)
    return dataclasses.replace(Accelerator.from_preset(base), zeros=plain)


def cost(row, accelerator, **density):
    return estimate_layers([{**row, **density}], accelerator).layers[0].cost


def test_a_chip_that_ignores_zeros_charges_them():
    dense, sparse = (cost(ROW, chip(), i_density=d, w_density=d) for d in (1.0, 0.1))
    assert sparse == dense


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_gating_saves_energy_in_proportion_but_no_time(what):
    density = {"w_density" if what == "weights" else "i_density": 0.25}
    gating = chip("gating", what=what)
    dense, sparse = cost(ROW, gating), cost(ROW, gating, **density)
    assert sparse.components[MAC] == pytest.approx(0.25 * dense.components[MAC])
    assert sparse.components[Component("rf_16B", "O")] < dense.components[Component("rf_16B", "O")]
    own, other = Component("rf_64B_W", "W"), Component("rf_64B_A", "I")
    if what == "activations":
        own, other = other, own
    assert sparse.components[other] < dense.components[other]
    assert sparse.components[own] == dense.components[own]  # a zero must be read to be seen
    assert sparse.cycles == dense.cycles


def test_skipping_saves_time_too_but_not_below_the_transfers():
    skipping = chip("skipping", base="tpu_like")
    dense, half, none = (cost(ROW, skipping, i_density=d) for d in (1.0, 0.5, 0.0))
    assert half.compute_cycles == pytest.approx(dense.compute_cycles / 2)
    assert none.cycles < half.cycles < dense.cycles
    assert none.cycles * 64 >= none.dram_bits  # the DRAM port still moves everything


def test_compressed_weights_shrink_traffic_and_the_time_spent_on_it():
    packed = chip(storage="bitmap", stored_in=("dram",), what="weights")
    dense, sparse = cost(FC, packed), cost(FC, packed, w_density=0.1)
    assert sparse.components[Component("dram", "W")] == pytest.approx(
        dense.components[Component("dram", "W")] * (0.1 * 8 + 1) / 8
    )
    assert sparse.components[Component("sram_64KB", "W")] == dense.components[Component("sram_64KB", "W")]
    assert sparse.cycles < dense.cycles


def test_dense_data_is_never_stored_larger():
    packed = chip(storage="run_length", stored_in=("dram",), what="weights")
    assert cost(FC, packed) == cost(FC, chip())


def test_narrow_weights_cost_less_everywhere_they_go():
    wide, narrow = (cost({**FC, "w_bits": b}, "tpu_like") for b in (8, 4))
    assert narrow.components[Component("dram", "W")] == pytest.approx(
        wide.components[Component("dram", "W")] / 2, rel=0.01
    )
    assert narrow.components[MAC] < wide.components[MAC]
    assert narrow.cycles < wide.cycles


def vector(**kw):
    op = Operation(name="relu", op="relu", kind="elementwise", **kw)
    (layer,) = estimate(Trace(operations=(op,)), "tpu_like").layers
    return layer.cost


def test_a_vector_operation_moves_its_elements_and_works_on_them():
    found = vector(elements_in=6400, elements_out=6400, operations=6400)
    bits = 6400 * 8
    assert found.dram_bits == 2 * bits
    assert found.components[Component("dram", "I")] == pytest.approx(bits / 64 * 700)
    assert found.components[Component("dram", "O")] == pytest.approx(bits / 64 * 750)
    assert found.components[Component("sram_2MB", "I")] == pytest.approx(bits / 2048 * (416.16 + 378.4))
    assert found.cycles == 2 * bits / 64
    assert found.components[VECTOR] > 0


def test_a_fused_operation_moves_only_its_other_inputs():
    found = vector(elements_in=0, elements_out=6400, operations=6400, fused=True)
    assert found.dram_bits == 0
    assert found.components[VECTOR] > 0
    assert found.cycles == 200  # 32 lanes


def sparse_report():
    rows = [{**ROW, "i_density": 0.4, "w_density": 0.3}, {**FC, "i_density": 0.9}]
    return estimate_layers(rows, "eyeriss_like")


def test_the_differentiable_form_has_the_value_of_the_report():
    report = sparse_report()
    assert float(EnergyModel(report).energy_uJ()) == pytest.approx(report.energy_uJ, rel=1e-6)


@pytest.mark.parametrize("what", ["w_bits", "i_bits", "o_bits", "w_density", "i_density", "o_density"])
def test_its_gradient_is_the_slope_of_its_value(what):
    model = EnergyModel(sparse_report())
    start = torch.tensor([0.42, 0.37] if "density" in what else [6.0, 5.0], dtype=torch.float64)
    point = start.clone().requires_grad_()
    model.energy_uJ(**{what: point}).backward()
    for index in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[index] = 1e-4
        slope = (model.energy_uJ(**{what: start + step}) - model.energy_uJ(**{what: start - step})) / 2e-4
        assert point.grad[index] == pytest.approx(float(slope), rel=1e-4, abs=1e-9)
        assert point.grad[index] >= 0


def test_its_price_of_narrower_weights_is_near_that_of_a_new_mapping():
    model = EnergyModel(estimate_layers([FC], "tpu_like"))
    remapped = estimate_layers([{**FC, "w_bits": 4}], "tpu_like").energy_uJ
    assert float(model.energy_uJ(w_bits=torch.tensor([4.0]))) == pytest.approx(remapped, rel=0.05)


def test_a_tensor_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"w_bits has the shape \(3,\).*2 multiply-accumulate"):
        EnergyModel(sparse_report()).energy_uJ(w_bits=torch.ones(3))
    with pytest.raises(TypeError, match="w_bits is 4"):
        EnergyModel(sparse_report()).energy_uJ(w_bits=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "convolution"}, ["kind='convolution'", "conv, depthwise, gemm", "did you mean 'conv'"]),
        ({"K": 0}, ["K=0", "positive"]),
        ({"OX": "wide"}, ["OX='wide'", "positive"]),
        ({"stride": 1.5}, ["stride=1.5", "positive"]),
        ({"w_density": 1.5}, ["w_density=1.5", "0 to 1"]),
    ],
)
def test_a_wrong_row_is_named(change, words):
    with pytest.raises(ValueError, match=r"row 0 \(l\)") as caught:
        estimate_layers([{**ROW, **change}], "tpu_like")
    for word in words:
        assert word in str(caught.value)


def test_a_report_of_nothing_is_all_zero():
    report = estimate_layers([], "tpu_like")
    assert isinstance(report, CostReport)
    assert (report.energy_uJ, report.macs, report.rows()) == (0, 0, [])
